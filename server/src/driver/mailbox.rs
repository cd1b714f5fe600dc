//! What waits for one thread. It takes all of it at once, and sleeps at once when there is nothing, or nothing urgent.
//!
//! The receivers of `std` and crossbeam spin and yield for microseconds before they sleep, which pays when cores are
//! idle. These threads run on cores that are busy with each other: what one spins away, the others lack.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Instant,
};

/// Makes a mailbox. It has no bound: who sends bounds what it sends.
pub(super) fn mailbox<T>() -> (Sender<T>, Receiver<T>) {
    let mailbox = Arc::new(Mailbox { state: Mutex::new(State::default()), filled: Condvar::new() });
    (Sender(mailbox.clone()), Receiver { mailbox, taken: VecDeque::new() })
}

struct Mailbox<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// Something that waits is urgent.
    urgent: bool,
    /// The receiver sleeps, nobody has woken it yet, and this is what does.
    wakes: Option<Wake>,
    /// The receiver is gone.
    closed: bool,
}

/// What a receiver is woken for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Whatever comes.
    Any,
    /// What was sent as urgent.
    Urgent,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), urgent: false, wakes: None, closed: false }
    }
}

impl<T> Mailbox<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nobody panics with a mailbox in hand")
    }
}

/// The senders' end; clones share it.
pub(super) struct Sender<T>(Arc<Mailbox<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Sender<T> {
    /// Puts an input behind those that wait. It is dropped when the receiver is gone.
    pub(super) fn send(&self, input: T) {
        self.put(input, true);
    }

    /// Does the same, and leaves a receiver asleep that waits for what is urgent.
    pub(super) fn send_patient(&self, input: T) {
        self.put(input, false);
    }

    fn put(&self, input: T, urgent: bool) {
        let mut state = self.0.lock();
        if state.closed {
            // The input is dropped behind the lock: it may tell somebody.
            drop(state);
            return;
        }
        state.waiting.push_back(input);
        state.urgent |= urgent;
        let wakes = state.wakes.take_if(|wake| urgent || *wake == Wake::Any).is_some();
        drop(state);
        if wakes {
            self.0.filled.notify_one();
        }
    }
}

/// The one receiver. What waits when it goes is dropped.
pub(super) struct Receiver<T> {
    mailbox: Arc<Mailbox<T>>,
    /// Taken and not handed out yet.
    taken: VecDeque<T>,
}

impl<T> Receiver<T> {
    /// The next input that is there.
    pub(super) fn try_next(&mut self) -> Option<T> {
        self.taken.pop_front().or_else(|| {
            let mut state = self.mailbox.lock();
            state.urgent = false;
            std::mem::swap(&mut self.taken, &mut state.waiting);
            drop(state);
            self.taken.pop_front()
        })
    }

    /// Returns when there is an input, or only an urgent one, or at the deadline; without one after as long as it takes.
    pub(super) fn wait(&mut self, wake: Wake, deadline: Option<Instant>) {
        if !self.taken.is_empty() {
            return;
        }
        let mut state = self.mailbox.lock();
        while !(state.urgent || (wake == Wake::Any && !state.waiting.is_empty())) {
            let now = Instant::now();
            state.wakes = Some(wake);
            state = match deadline {
                None => self.mailbox.filled.wait(state).expect("nobody panics with a mailbox in hand"),
                Some(deadline) if now < deadline => {
                    let woken = self.mailbox.filled.wait_timeout(state, deadline - now);
                    woken.expect("nobody panics with a mailbox in hand").0
                }
                Some(_) => break,
            };
        }
        state.wakes = None;
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.mailbox.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Far enough away that no test reaches it.
    fn far() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(3_600))
    }

    #[test]
    fn inputs_come_in_order_and_a_deadline_ends_the_wait() {
        let (sender, mut receiver) = mailbox();
        let soon = Instant::now() + Duration::from_millis(1);
        receiver.wait(Wake::Any, Some(soon));
        assert!(Instant::now() >= soon);
        assert_eq!(receiver.try_next(), None);
        sender.send(1);
        sender.clone().send_patient(2);
        receiver.wait(Wake::Any, far());
        assert_eq!(receiver.try_next(), Some(1));
        sender.send(3);
        receiver.wait(Wake::Any, far());
        assert_eq!([receiver.try_next(), receiver.try_next(), receiver.try_next()], [Some(2), Some(3), None]);
    }

    #[test]
    fn only_what_is_urgent_wakes_a_receiver_that_waits_for_it() {
        let (sender, mut receiver) = mailbox();
        sender.send_patient(1);
        let soon = Instant::now() + Duration::from_millis(1);
        receiver.wait(Wake::Urgent, Some(soon));
        assert!(Instant::now() >= soon);
        sender.send(2);
        sender.send_patient(3);
        receiver.wait(Wake::Urgent, far());
        assert_eq!([receiver.try_next(), receiver.try_next(), receiver.try_next()], [Some(1), Some(2), Some(3)]);
        sender.send_patient(4);
        let soon = Instant::now() + Duration::from_millis(1);
        receiver.wait(Wake::Urgent, Some(soon));
        assert!(Instant::now() >= soon, "the urgent one was taken");
    }

    #[test]
    fn a_receiver_that_sleeps_is_woken_each_time() {
        let (sender, mut receiver) = mailbox();
        let (echo, mut echoed) = mailbox();
        let thread = std::thread::spawn(move || {
            for turn in 0..10_000 {
                receiver.wait(if turn % 2 == 0 { Wake::Any } else { Wake::Urgent }, far());
                echo.send(receiver.try_next());
            }
        });
        for turn in 0..10_000 {
            if turn % 2 == 0 {
                sender.send_patient(turn)
            } else {
                sender.send(turn)
            }
            echoed.wait(Wake::Urgent, far());
            assert_eq!(echoed.try_next(), Some(Some(turn)));
        }
        thread.join().expect("the thread ends");
    }

    #[test]
    fn what_nobody_will_take_is_dropped() {
        let (sender, receiver) = mailbox();
        let input = Arc::new(());
        sender.send(input.clone());
        assert_eq!(Arc::strong_count(&input), 2);
        drop(receiver);
        assert_eq!(Arc::strong_count(&input), 1, "it waited");
        sender.send(input.clone());
        assert_eq!(Arc::strong_count(&input), 1, "it came later");
    }
}
