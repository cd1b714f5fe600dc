//! What comes of a deed: the events with their properties, and how it changes those who took part.

use crate::{
    Simulation,
    changes::Born,
    json::{Object, push_int, push_tenths, push_text},
    player::{Match, Player, Playing, Session},
    rhythm::{REGIONS, Region},
    simulation::Deed,
    world::{
        ATTACHMENTS, CHANNELS, ITEMS, LOGOUT_REASONS, LOOT_WEIGHTS, MAPS, MODES, PLATFORMS, RARITIES, VERSIONS,
        WEAPONS, ZONES, guild_name,
    },
};

/// Gold that a player starts with.
const GOLD_FIRST: i64 = 100;
/// A match may be joined for so long after it opened.
const LOBBY_MS: i64 = 60_000;
/// An event that comes late is at most so old.
const LATE_MS_MAX: i64 = 30 * 60_000;

impl Simulation {
    /// Carries out what a player set out to do.
    pub(crate) fn act(&mut self, player: u32, at_ms: i64, deed: Deed) {
        // Only what was added for want of free players can outlive its session.
        if self.players[player as usize].session.is_none() {
            return;
        }
        match deed {
            Deed::Login => self.login(player, at_ms),
            Deed::Logout => self.logout(player, at_ms),
            Deed::MatchStart => self.match_start(player, at_ms),
            Deed::Kill => self.kill(player, at_ms),
            Deed::MatchEnd => self.match_end(player, at_ms),
            Deed::Purchase => self.purchase(player, at_ms),
            Deed::Loot => self.loot(player, at_ms),
            Deed::Chat => self.chat(player, at_ms),
            Deed::Latency => self.latency(player, at_ms),
            Deed::Trade => self.trade(player, at_ms),
            Deed::Guild => self.guild(player, at_ms),
        }
    }

    fn player(&mut self, player: u32) -> (&mut Player, &'static Region) {
        let player = &mut self.players[player as usize];
        let region = &REGIONS[usize::from(player.region)];
        (player, region)
    }

    /// The session of a player who acts.
    fn session(&mut self, player: u32) -> &mut Session {
        self.players[player as usize].session.as_mut().expect("only players with a session act")
    }

    /// Begins an event's properties with the session.
    fn properties(&mut self, player: u32) -> String {
        let id = self.session(player).id;
        let mut text = String::with_capacity(288);
        text.push_str("{\"session\":\"s");
        push_int(&mut text, 10_000_000 + id.cast_signed());
        text.push('"');
        text
    }

    /// Adds to a player's gold, also in what is to be saved.
    fn add_gold(&mut self, player: u32, gold: i64) {
        self.players[player as usize].gold += gold;
        self.session(player).changes.gold += gold;
    }

    fn add_item(&mut self, player: u32, item: usize, count: i64) {
        let owned = &mut self.players[player as usize].inventory[item];
        let after = i64::from(*owned) + count;
        *owned = u32::try_from(after).unwrap_or_else(|_| panic!("{after} of an item are owned"));
        self.session(player).changes.items[item] += count;
    }

    fn login(&mut self, player: u32, at_ms: i64) {
        let mut text = self.properties(player);
        let latency = self.rng.within(0, 900) + self.rng.within(0, 200);
        let version = self.rng.weighted(&[30, 55, 10, 5]);
        let memory = *self.rng.pick(&[8_192, 16_384, 16_384, 32_768]);
        let (who, region) = self.player(player);
        let first = !who.known;
        who.known = true;
        let (platform, os) = PLATFORMS[usize::from(who.platform)];
        let language = region.languages[usize::from(who.language)];
        let mut object = Object::more(&mut text);
        object.text("region", region.name).text("platform", platform).text("client", VERSIONS[version]);
        object.object("device", |device| {
            device.text("os", os).int("memory_mb", memory);
        });
        object.int("level", i64::from(who.level)).flag("first", first);
        object.tenths("latency_ms", region.latency_ms * 10 + latency).end();
        let changes = &mut self.session(player).changes;
        if first {
            changes.born = Some(Born { region: region.name, language, platform });
            changes.level = Some(1);
        }
        changes.last_login_ms = Some(at_ms);
        changes.sessions += 1;
        if first {
            self.add_gold(player, GOLD_FIRST);
        }
        self.online.push(player);
        self.emit(player, at_ms, "login", text);
    }

    fn logout(&mut self, player: u32, at_ms: i64) {
        let mut text = self.properties(player);
        let reason = *self.rng.pick(&LOGOUT_REASONS);
        let who = &self.players[player as usize];
        let (level, gold) = (i64::from(who.level), who.gold);
        let session = self.session(player);
        let mut object = Object::more(&mut text);
        object.int("duration_s", (at_ms - session.started_ms) / 1_000).text("reason", reason);
        object.int("matches", i64::from(session.matches)).int("events", i64::from(session.events) + 1);
        object.int("level", level).int("gold", gold).end();
        self.emit(player, at_ms, "logout", text);
        self.save(player);
        self.players[player as usize].session = None;
        if let Some(place) = self.online.iter().position(|other| *other == player) {
            self.online.swap_remove(place);
        }
    }

    /// Joins the region's open match, or opens one.
    fn join_match(&mut self, player: u32, at_ms: i64) -> u64 {
        let region = usize::from(self.players[player as usize].region);
        let lobby = self.lobbies[region].filter(|id| {
            self.matches.get(id).is_some_and(|open| {
                at_ms - open.opened_ms < LOBBY_MS
                    && open.joined.len() < MODES[usize::from(open.mode)].1
                    && !open.joined.contains(&player)
            })
        });
        let id = lobby.unwrap_or_else(|| {
            self.matches_opened += 1;
            let small = |value: usize| u8::try_from(value).unwrap_or(0);
            let opened = Match {
                map: small(self.rng.weighted(&[30, 22, 18, 14, 10, 6])),
                mode: small(self.rng.weighted(&[25, 55, 20])),
                opened_ms: at_ms,
                winner: small(self.rng.weighted(&[1, 1])),
                joined: Vec::new(),
                left: 0,
            };
            self.matches.insert(self.matches_opened, opened);
            self.lobbies[region] = Some(self.matches_opened);
            self.matches_opened
        });
        self.matches.get_mut(&id).expect("the match is open").joined.push(player);
        id
    }

    fn match_start(&mut self, player: u32, at_ms: i64) {
        let id = self.join_match(player, at_ms);
        let weapon = *self.rng.pick(&WEAPONS);
        let attachments = [*self.rng.pick(&ATTACHMENTS), *self.rng.pick(&ATTACHMENTS)];
        let mut text = self.properties(player);
        let who = &self.players[player as usize];
        let open = &self.matches[&id];
        let team = u8::from(open.joined.len().is_multiple_of(2));
        let mut object = Object::more(&mut text);
        object.int("match", id.cast_signed()).text("map", MAPS[usize::from(open.map)]);
        object.text("mode", MODES[usize::from(open.mode)].0).int("team", i64::from(team)).int("rating", who.rating);
        object.object("loadout", |loadout| {
            loadout.text("weapon", weapon).with("attachments", |out| {
                out.push_str("[\"");
                out.push_str(attachments[0]);
                out.push_str("\",\"");
                out.push_str(attachments[1]);
                out.push_str("\"]");
            });
        });
        object.end();
        let session = self.session(player);
        session.matches += 1;
        session.playing = Some(Playing { id, started_ms: at_ms, team, kills: 0, deaths: 0 });
        session.changes.matches += 1;
        self.emit(player, at_ms, "match_start", text);
    }

    fn kill(&mut self, player: u32, at_ms: i64) {
        let Some(playing) = &mut self.session(player).playing else { return };
        playing.kills += 1;
        let id = playing.id;
        self.session(player).changes.kills += 1;
        let victim = *self.rng.pick(&self.matches[&id].joined);
        let victim = (victim != player).then_some(victim);
        if let Some(session) = victim.and_then(|victim| self.players[victim as usize].session.as_mut())
            && let Some(playing) = session.playing.as_mut().filter(|playing| playing.id == id)
        {
            playing.deaths += 1;
        }
        let weapon = *self.rng.pick(&WEAPONS);
        let (distance, headshot) = (self.rng.within(8, 900), self.rng.percent(23));
        let place = [self.rng.within(-4_000, 4_000), self.rng.within(-4_000, 4_000), self.rng.within(0, 300)];
        let mut text = self.properties(player);
        let mut object = Object::more(&mut text);
        object.int("match", id.cast_signed());
        // Whoever is alone in a match fights against the machine.
        match victim {
            Some(victim) => object.text("victim", &self.players[victim as usize].id),
            None => object.with("victim", |out| out.push_str("null")),
        };
        object.text("weapon", weapon).tenths("distance_m", distance).flag("headshot", headshot);
        object.with("position", |out| {
            for (separator, metres) in ["[", ",", ","].into_iter().zip(place) {
                out.push_str(separator);
                push_tenths(out, metres);
            }
            out.push(']');
        });
        object.end();
        self.emit(player, at_ms, "kill", text);
    }

    fn match_end(&mut self, player: u32, at_ms: i64) {
        let Some(playing) = self.session(player).playing.take() else { return };
        let played = self.matches.get_mut(&playing.id).expect("a match lives until its last player leaves");
        played.left += 1;
        let (map, mode, won) = (played.map, played.mode, played.winner == playing.team);
        let count = played.joined.len() as i64;
        if played.left == played.joined.len() {
            self.matches.remove(&playing.id);
        }
        let damage = i64::from(playing.kills) * 1_000 + self.rng.within(0, 2_500);
        let rated = if won { self.rng.within(8, 25) } else { -self.rng.within(6, 22) };
        let gold = self.rng.within(4, 20) + if won { 15 } else { 0 };
        let mut text = self.properties(player);
        let mut object = Object::more(&mut text);
        object.int("match", playing.id.cast_signed()).text("map", MAPS[usize::from(map)]);
        object.text("mode", MODES[usize::from(mode)].0).text("result", if won { "win" } else { "loss" });
        object.int("kills", i64::from(playing.kills)).int("deaths", i64::from(playing.deaths)).int("players", count);
        object.int("duration_s", (at_ms - playing.started_ms) / 1_000).tenths("damage", damage);
        object.int("rating_change", rated).int("gold", gold).end();
        self.emit(player, at_ms, "match_end", text);
        let who = &mut self.players[player as usize];
        who.rating += rated;
        let rating = who.rating;
        let changes = &mut self.session(player).changes;
        changes.rating = Some(rating);
        changes.wins += i64::from(won);
        self.add_gold(player, gold);
        self.gain_xp(player, at_ms, 60 + 20 * i64::from(playing.kills) + if won { 80 } else { 0 });
    }

    /// Adds experience and tells of a new level.
    fn gain_xp(&mut self, player: u32, at_ms: i64, xp: i64) {
        let who = &mut self.players[player as usize];
        who.xp += xp;
        let (level, total) = (i64::from(who.level), who.xp);
        self.session(player).changes.xp += xp;
        if total < 100 * level * level || self.room == 0 {
            return;
        }
        let who = &mut self.players[player as usize];
        who.level += 1;
        let (level, reward) = (who.level, i64::from(who.level) * 5);
        self.session(player).changes.level = Some(level);
        self.add_gold(player, reward);
        let skill = *self.rng.pick(&ATTACHMENTS);
        let mut text = self.properties(player);
        let mut object = Object::more(&mut text);
        object.int("level", i64::from(level)).int("xp", total);
        object.object("reward", |gift| {
            gift.int("gold", reward).text("skill", skill).flag("title", level % 10 == 0);
        });
        object.end();
        self.emit(player, at_ms, "level_up", text);
    }

    fn purchase(&mut self, player: u32, at_ms: i64) {
        let shop: [(usize, i64); 7] = {
            let mut sold = ITEMS.iter().enumerate().filter_map(|(place, item)| Some((place, item.price_cents?)));
            std::array::from_fn(|_| sold.next().unwrap_or((0, 0)))
        };
        let (item, price) = shop[self.rng.weighted(&[30, 26, 8, 6, 14, 14, 2])];
        let quantity = if self.rng.percent(85) { 1 } else { self.rng.within(2, 5) };
        let discount = if self.rng.percent(20) { self.rng.within(1, 5) * 100 } else { 0 };
        let cents = price * quantity * (1_000 - discount) / 1_000;
        let method = *self.rng.pick(&["card", "card", "wallet", "store", "gift_code"]);
        let mut text = self.properties(player);
        let (_, region) = self.player(player);
        let mut object = Object::more(&mut text);
        object.text("item", ITEMS[item].name).text("category", ITEMS[item].category);
        object.int("price_cents", cents).text("currency", region.currency).int("quantity", quantity);
        object.tenths("discount_percent", discount).text("method", method).flag("gift", method == "gift_code").end();
        self.add_item(player, item, quantity);
        self.session(player).changes.spent_cents += cents;
        self.emit(player, at_ms, "purchase", text);
    }

    fn loot(&mut self, player: u32, at_ms: i64) {
        let item = self.rng.weighted(&LOOT_WEIGHTS);
        let quantity = if ITEMS[item].rarity == 0 { self.rng.within(1, 6) } else { 1 };
        let zone = *self.rng.pick(&ZONES);
        let gold = self.rng.within(0, 8);
        let place = [self.rng.within(-9_000, 9_000), self.rng.within(-9_000, 9_000)];
        let mut text = self.properties(player);
        let mut object = Object::more(&mut text);
        object.text("item", ITEMS[item].name).text("rarity", RARITIES[ITEMS[item].rarity]);
        object.int("quantity", quantity).text("zone", zone).int("gold", gold);
        object.object("at", |at| {
            at.tenths("x", place[0]).tenths("y", place[1]);
        });
        object.end();
        self.add_item(player, item, quantity);
        self.add_gold(player, gold);
        self.emit(player, at_ms, "loot", text);
        self.gain_xp(player, at_ms, 5);
    }

    fn chat(&mut self, player: u32, at_ms: i64) {
        let channel = CHANNELS[self.rng.weighted(&[40, 18, 25, 12, 5])];
        let length = self.rng.below(60) * self.rng.below(4) + 2;
        let toxicity = self.rng.within(0, 10) * self.rng.within(0, 10) / 10;
        let mention = if self.rng.percent(15) { Some(*self.rng.pick(&self.online)) } else { None };
        let mut text = self.properties(player);
        let (who, region) = self.player(player);
        let language = region.languages[usize::from(who.language)];
        let mention = mention.map(|other| self.players[other as usize].id.as_str());
        let mut object = Object::more(&mut text);
        object.text("channel", channel).int("length", length.cast_signed()).text("language", language);
        object.tenths("toxicity", toxicity).flag("filtered", toxicity > 7);
        object.with("mentions", |out| {
            out.push('[');
            if let Some(mention) = mention {
                push_text(out, mention);
            }
            out.push(']');
        });
        object.end();
        self.emit(player, at_ms, "chat", text);
    }

    fn latency(&mut self, player: u32, at_ms: i64) {
        let measured = self.rng.within(0, 400) + if self.rng.percent(4) { self.rng.within(0, 4_000) } else { 0 };
        let (jitter, loss) = (self.rng.within(1, 90), self.rng.within(0, 12) / 8);
        let fps = self.rng.within(28, 145);
        let late_ms = if self.rng.percent(2) { self.rng.within(1_000, LATE_MS_MAX) } else { 0 };
        let mut text = self.properties(player);
        let (_, region) = self.player(player);
        let mut object = Object::more(&mut text);
        object.tenths("latency_ms", region.latency_ms * 10 + measured).tenths("jitter_ms", jitter);
        object.tenths("loss_percent", loss).int("fps", fps).text("server", region.name);
        object.flag("late", late_ms > 0).end();
        let at_ms = (at_ms - late_ms).max(self.config.start_ms());
        self.emit(player, at_ms, "latency", text);
    }

    /// Sells something to somebody who is online; without a buyer, something to sell or room for both sides' events
    /// the player finds something instead.
    fn trade(&mut self, seller: u32, at_ms: i64) {
        let buyer = *self.rng.pick(&self.online);
        let first = self.rng.below(ITEMS.len() as u64) as usize;
        let owned = |item: &usize| self.players[seller as usize].inventory[*item] > 0;
        let item = (first..ITEMS.len()).chain(0..first).find(owned);
        let (Some(item), true) = (item, buyer != seller && self.room >= 2) else { return self.loot(seller, at_ms) };
        let owned = i64::from(self.players[seller as usize].inventory[item]);
        let quantity = self.rng.within(1, owned.min(3) + 1);
        let gold = (ITEMS[item].gold * quantity).min(self.players[buyer as usize].gold);
        let id = self.rng.next_u64() >> 20;
        self.add_item(seller, item, -quantity);
        self.add_item(buyer, item, quantity);
        self.add_gold(seller, gold);
        self.add_gold(buyer, -gold);
        for (player, partner, role) in [(seller, buyer, "seller"), (buyer, seller, "buyer")] {
            let mut text = self.properties(player);
            let who = &self.players[player as usize];
            let mut object = Object::more(&mut text);
            object.int("trade", id.cast_signed()).text("role", role);
            object.text("partner", &self.players[partner as usize].id).text("item", ITEMS[item].name);
            object.int("quantity", quantity).int("gold", gold).int("balance", who.gold).end();
            self.emit(player, at_ms, "trade", text);
        }
    }

    fn guild(&mut self, player: u32, at_ms: i64) {
        let guilds = u64::from(self.config.players / 40).max(3);
        // The product of two draws: some guilds are large, most are small.
        let drawn = self.rng.below(guilds) * self.rng.below(guilds) / guilds;
        let leaves = self.rng.percent(30);
        let (who, _) = self.player(player);
        let (event_type, guild, after) = match who.guild {
            Some(guild) if leaves => ("guild_leave", guild, None),
            // Who has a guild talks to it.
            Some(_) => return self.chat(player, at_ms),
            None => {
                let guild = u32::try_from(drawn).unwrap_or(0);
                ("guild_join", guild, Some(guild))
            }
        };
        who.guild = after;
        let level = i64::from(who.level);
        self.session(player).changes.guild = Some(after);
        let roles = *self.rng.pick(&[r#"["member"]"#, r#"["member","crafter"]"#, r#"["member","scout","herald"]"#]);
        let mut text = self.properties(player);
        let mut object = Object::more(&mut text);
        object.int("guild", i64::from(guild)).text("guild_name", &guild_name(guild)).int("level", level);
        object.with("roles", |out| out.push_str(roles)).end();
        self.emit(player, at_ms, event_type, text);
    }
}
