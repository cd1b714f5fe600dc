//! The invented game: its maps, items, guilds and words.

/// All event types, in the order of the alphabet.
pub const EVENT_TYPES: [&str; 13] = [
    "chat",
    "guild_join",
    "guild_leave",
    "kill",
    "latency",
    "level_up",
    "login",
    "logout",
    "loot",
    "match_end",
    "match_start",
    "purchase",
    "trade",
];

pub(crate) const MAPS: [&str; 6] = ["ashen_keep", "coral_bay", "old_foundry", "skyline", "sunken_city", "white_pass"];
pub(crate) const MODES: [(&str, usize); 3] = [("duel", 2), ("squad", 8), ("siege", 12)];
pub(crate) const WEAPONS: [&str; 8] =
    ["longbow", "war_axe", "rapier", "hand_cannon", "frost_staff", "crossbow", "twin_daggers", "halberd"];
pub(crate) const ATTACHMENTS: [&str; 5] = ["scope", "grip", "rune_of_haste", "counterweight", "silk_string"];
pub(crate) const ZONES: [&str; 7] = ["harbour", "market", "catacombs", "high_moor", "glass_forest", "arena", "docks"];
pub(crate) const CHANNELS: [&str; 5] = ["global", "guild", "team", "whisper", "trade"];
pub(crate) const PLATFORMS: [(&str, &str); 5] = [
    ("windows", "Windows 11"),
    ("windows", "Windows 10"),
    ("playstation", "PS5 24.08"),
    ("android", "Android 15"),
    ("ios", "iOS 18.2"),
];
pub(crate) const VERSIONS: [&str; 4] = ["2.11.0", "2.11.1", "2.10.7", "2.12.0-beta.1"];
pub(crate) const LOGOUT_REASONS: [&str; 5] = ["quit", "quit", "idle", "connection_lost", "crash"];
pub(crate) const RARITIES: [&str; 4] = ["common", "rare", "epic", "legendary"];

/// Something that players own.
pub(crate) struct Item {
    pub(crate) name: &'static str,
    pub(crate) category: &'static str,
    /// Place in [`RARITIES`].
    pub(crate) rarity: usize,
    /// In gold, between players.
    pub(crate) gold: i64,
    /// In the shop; none: it is only found.
    pub(crate) price_cents: Option<i64>,
}

const fn item(name: &'static str, category: &'static str, rarity: usize, gold: i64, price_cents: Option<i64>) -> Item {
    Item { name, category, rarity, gold, price_cents }
}

/// All items; what is found often comes first.
pub(crate) const ITEMS: [Item; 16] = [
    item("healing_potion", "consumable", 0, 5, None),
    item("iron_ore", "material", 0, 8, None),
    item("silk_cloth", "material", 0, 12, None),
    item("arrow_bundle", "consumable", 0, 4, None),
    item("moonstone", "material", 1, 60, None),
    item("rune_of_haste", "rune", 1, 95, Some(199)),
    item("scroll_of_return", "consumable", 1, 45, Some(99)),
    item("steel_halberd", "weapon", 1, 140, None),
    item("frost_staff", "weapon", 2, 420, None),
    item("ember_cloak", "armour", 2, 380, Some(799)),
    item("phoenix_banner", "cosmetic", 2, 510, Some(1_299)),
    item("dragon_scale", "material", 3, 1_400, None),
    item("season_pass", "pass", 1, 600, Some(999)),
    item("gem_chest_small", "currency", 0, 150, Some(499)),
    item("gem_chest_large", "currency", 2, 900, Some(2_999)),
    item("crown_of_tides", "cosmetic", 3, 2_600, Some(4_999)),
];

/// How likely each item is found.
pub(crate) const LOOT_WEIGHTS: [u32; ITEMS.len()] = [400, 300, 220, 260, 60, 24, 50, 20, 8, 8, 4, 2, 0, 10, 1, 1];

const GUILD_FIRST: [&str; 8] = ["Iron", "Silent", "Golden", "Crimson", "Northern", "Hollow", "Storm", "Velvet"];
const GUILD_SECOND: [&str; 8] = ["Wolves", "Lanterns", "Company", "Order", "Ravens", "Circle", "Tide", "Foxes"];

/// Returns a guild's name.
pub(crate) fn guild_name(guild: u32) -> String {
    let place = |shift: u32| usize::try_from((guild >> shift) & 7).unwrap_or(0);
    let (first, second) = (GUILD_FIRST[place(0)], GUILD_SECOND[place(3)]);
    match guild >> 6 {
        0 => format!("{first} {second}"),
        more => format!("{first} {second} {}", more + 1),
    }
}

const FIRST: [&str; 16] = [
    "amber", "brisk", "coral", "dusk", "ember", "frost", "gale", "hazel", "ivory", "jade", "keen", "lunar", "mossy",
    "noble", "onyx", "pale",
];
const SECOND: [&str; 16] = [
    "badger", "crane", "drake", "falcon", "fox", "golem", "heron", "lynx", "mantis", "otter", "panda", "raven", "stag",
    "tiger", "viper", "wolf",
];

/// Returns the id of a player: a name that people can read, and six digits that no other player has.
pub(crate) fn player_id(index: u32) -> String {
    // An odd factor gives each number below 2^24 another one.
    let number = index.wrapping_mul(0x9e_3779b1 & 0xff_ffff) & 0xff_ffff;
    let place = |shift: u32| usize::try_from((number >> shift) & 15).unwrap_or(0);
    format!("{}_{}_{number:06x}", FIRST[place(9)], SECOND[place(17)])
}
