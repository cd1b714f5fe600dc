//! What clients did and what they were told, and whether what is stored agrees with it.
//!
//! Three kinds of outcome are kept apart: *acknowledged* (must count once), *unknown* (may count once or not at all), and
//! what was never sent (must not be there). The checks are pure: they take what a test read back.

use std::collections::{BTreeMap, HashMap};

/// Appended events by their ids.
#[derive(Clone, Debug, Default)]
pub struct Appends {
    /// Every id that was sent, and whether it was acknowledged.
    sent: HashMap<String, bool>,
}

impl Appends {
    /// An event is on its way: its outcome is unknown.
    pub fn sent(&mut self, id: &str) {
        self.sent.entry(id.to_owned()).or_insert(false);
    }

    /// An event was acknowledged.
    pub fn acknowledged(&mut self, id: &str) {
        self.sent.insert(id.to_owned(), true);
    }

    /// How many events were acknowledged, and how many were not.
    pub fn counts(&self) -> (usize, usize) {
        let acknowledged = self.sent.values().filter(|acknowledged| **acknowledged).count();
        (acknowledged, self.sent.len() - acknowledged)
    }

    /// Compares with the ids of all stored events, as often as they are stored.
    ///
    /// # Errors
    /// One line for each id that is lost, doubled or was never sent.
    pub fn check<'a>(&self, stored: impl IntoIterator<Item = &'a str>) -> Result<(), Vec<String>> {
        let mut times: BTreeMap<&str, u64> = BTreeMap::new();
        for id in stored {
            *times.entry(id).or_default() += 1;
        }
        let mut wrong: Vec<_> = times
            .iter()
            .filter_map(|(id, times)| match self.sent.get(*id) {
                None => Some(format!("{id}: stored and never sent")),
                Some(_) if *times > 1 => Some(format!("{id}: stored {times} times")),
                Some(_) => None,
            })
            .collect();
        let lost = self.sent.iter().filter(|(id, acknowledged)| **acknowledged && !times.contains_key(id.as_str()));
        wrong.extend(lost.map(|(id, _)| format!("{id}: acknowledged and lost")));
        wrong.sort();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// Increments by one of one counter, which is 0 at first.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    sent: u64,
    unknown: u64,
    /// What acknowledged increments returned, and how often.
    returned: BTreeMap<u64, u64>,
    /// The highest value that any client was told.
    highest: u64,
    wrong: Vec<String>,
}

/// What was certain when an operation began: the counter was at least so high.
#[derive(Clone, Copy, Debug)]
pub struct Begun(u64);

impl Counter {
    /// The counter is at least so high: a client was told it, or so many increments are acknowledged.
    fn floor(&self) -> u64 {
        self.highest.max(self.returned.values().sum())
    }

    /// A client was told a value.
    fn told(&mut self, what: &str, value: u64) {
        if value > self.sent {
            self.wrong.push(format!("{what} returned {value}; only {} increments were sent", self.sent));
        }
        self.highest = self.highest.max(value);
    }

    /// An increment is sent.
    pub fn increment(&mut self) -> Begun {
        self.sent += 1;
        Begun(self.floor())
    }

    /// A read is sent.
    pub fn read(&self) -> Begun {
        Begun(self.floor())
    }

    /// An increment was acknowledged with the counter's new value.
    pub fn incremented(&mut self, begun: Begun, value: u64) {
        if value <= begun.0 {
            self.wrong.push(format!("an increment returned {value} after {} was known", begun.0));
        }
        self.told("an increment", value);
        *self.returned.entry(value).or_default() += 1;
    }

    /// Nobody knows what became of an increment.
    pub fn unknown(&mut self) {
        self.unknown += 1;
    }

    /// A linearizable read was answered.
    pub fn was_read(&mut self, begun: Begun, value: u64) {
        if value < begun.0 {
            self.wrong.push(format!("a read returned {value} after {} was known", begun.0));
        }
        self.told("a read", value);
    }

    /// How many increments were acknowledged, and how many are unknown.
    pub fn counts(&self) -> (u64, u64) {
        (self.returned.values().sum(), self.unknown)
    }

    /// Compares with the counter's value in the end.
    ///
    /// # Errors
    /// One line for each thing that cannot be.
    pub fn check(&self, value: u64) -> Result<(), Vec<String>> {
        let (acknowledged, unknown) = self.counts();
        let mut wrong = self.wrong.clone();
        if !(acknowledged..=acknowledged + unknown).contains(&value) {
            wrong.push(format!("the counter is {value}; {acknowledged} were acknowledged, {unknown} are unknown"));
        }
        if value < self.highest {
            wrong.push(format!("the counter is {value}; a client was told {}", self.highest));
        }
        let twice = self.returned.iter().filter(|(_, times)| **times > 1);
        wrong.extend(twice.map(|(returned, times)| format!("{times} increments returned {returned}")));
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_doubled_and_invented_events_are_found() {
        let mut appends = Appends::default();
        for id in ["a", "b", "c"] {
            appends.sent(id);
        }
        appends.acknowledged("a");
        appends.acknowledged("b");
        assert_eq!(appends.counts(), (2, 1));
        assert_eq!(appends.check(["b", "a"]), Ok(()));
        assert_eq!(appends.check(["b", "a", "c"]), Ok(()));
        let wrong = appends.check(["b", "b", "c", "d"]).expect_err("wrong");
        assert_eq!(wrong, ["a: acknowledged and lost", "b: stored 2 times", "d: stored and never sent"]);
        assert!(appends.check(["a", "b", "c", "c"]).is_err());
    }

    #[test]
    fn a_counter_stays_between_acknowledged_and_unknown() {
        let mut counter = Counter::default();
        for value in 1..=3 {
            let begun = counter.increment();
            counter.incremented(begun, value);
        }
        counter.increment();
        counter.unknown();
        assert!(counter.check(2).is_err());
        assert_eq!(counter.check(3), Ok(()));
        assert_eq!(counter.check(4), Ok(()));
        assert!(counter.check(5).is_err());
    }

    #[test]
    fn a_value_that_goes_back_is_found() {
        let mut counter = Counter::default();
        let first = counter.increment();
        counter.incremented(first, 1);
        // Sent together, answered in any order.
        let (one, other) = (counter.increment(), counter.increment());
        counter.incremented(one, 3);
        counter.incremented(other, 2);
        let read = counter.read();
        counter.was_read(read, 3);
        assert_eq!(counter.check(3), Ok(()));
        let mut stale = counter.clone();
        stale.was_read(read, 2);
        assert!(stale.check(3).is_err());
        // What nobody acknowledged may have counted; who has read it does not read less later, and nor does anybody.
        let mut back = counter.clone();
        back.increment();
        back.unknown();
        back.was_read(read, 4);
        assert_eq!(back.check(4), Ok(()));
        assert!(back.check(3).is_err());
        let again = back.read();
        back.was_read(again, 3);
        assert!(back.check(4).is_err());
        let mut invented = counter.clone();
        invented.was_read(read, 9);
        assert!(invented.check(3).is_err());
        let mut twice = counter.clone();
        let begun = twice.increment();
        twice.incremented(begun, 3);
        assert!(twice.check(3).is_err() && twice.check(4).is_err());
    }
}
