//! The schema `pg_catalog`: the tables of `datafusion-pg-catalog`, and the views that it lacks.
//!
//! Those views are about a running server: its settings, locks, sessions. Tools join them without need, so most are there
//! and empty. `public` is wrapped too: as in Postgres, a name that a game has no table for is looked up in `pg_catalog`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, ident, lit};

use super::catalog::OWNER;
use super::relation::{Relation, Row, table_of};

/// Views and their columns (`relation` says what `#` means).
const VIEWS: &[Relation] = &[
    (
        "pg_settings",
        &[
            "name",
            "setting",
            "unit",
            "category",
            "short_desc",
            "extra_desc",
            "context",
            "vartype",
            "source",
            "min_val",
            "max_val",
            "enumvals",
            "boot_val",
            "reset_val",
            "sourcefile",
            "#sourceline",
            "pending_restart",
        ],
    ),
    // The crate's have texts for lists of columns, which cannot be unnested. A game has no keys and no indexes to show.
    (
        "pg_index",
        &[
            "#indexrelid",
            "#indrelid",
            "#indnatts",
            "#indnkeyatts",
            "?indisunique",
            "?indnullsnotdistinct",
            "?indisprimary",
            "?indisexclusion",
            "?indimmediate",
            "?indisclustered",
            "?indisvalid",
            "?indcheckxmin",
            "?indisready",
            "?indislive",
            "?indisreplident",
            "@indkey",
            "@indcollation",
            "@indclass",
            "@indoption",
            "indexprs",
            "indpred",
        ],
    ),
    (
        "pg_constraint",
        &[
            "#oid",
            "#tableoid",
            "conname",
            "#connamespace",
            "contype",
            "?condeferrable",
            "?condeferred",
            "?convalidated",
            "#conrelid",
            "#contypid",
            "#conindid",
            "#conparentid",
            "#confrelid",
            "confupdtype",
            "confdeltype",
            "confmatchtype",
            "?conislocal",
            "#coninhcount",
            "?connoinherit",
            "@conkey",
            "@confkey",
            "@conpfeqop",
            "@conppeqop",
            "@conffeqop",
            "@confdelsetcols",
            "@conexclop",
            "conbin",
        ],
    ),
    ("pg_user", &["usename", "#usesysid", "usecreatedb", "usesuper", "userepl", "usebypassrls", "passwd", "valuntil"]),
    ("pg_group", &["groname", "#grosysid", "grolist"]),
    ("pg_shadow", &["usename", "#usesysid", "usecreatedb", "usesuper", "passwd"]),
    ("pg_indexes", &["schemaname", "tablename", "indexname", "tablespace", "indexdef"]),
    ("pg_sequences", &["schemaname", "sequencename", "sequenceowner", "data_type"]),
    ("pg_rules", &["schemaname", "tablename", "rulename", "definition"]),
    ("pg_policies", &["schemaname", "tablename", "policyname", "permissive", "roles", "cmd", "qual", "with_check"]),
    ("pg_stats", &["schemaname", "tablename", "attname", "inherited", "null_frac", "avg_width", "n_distinct"]),
    (
        "pg_stat_activity",
        &[
            "#datid",
            "datname",
            "#pid",
            "#usesysid",
            "usename",
            "application_name",
            "client_addr",
            "client_hostname",
            "#client_port",
            "backend_start",
            "xact_start",
            "query_start",
            "state_change",
            "wait_event_type",
            "wait_event",
            "state",
            "backend_xid",
            "backend_xmin",
            "query",
            "backend_type",
        ],
    ),
    (
        "pg_stat_all_tables",
        &["#relid", "schemaname", "relname", "#seq_scan", "#idx_scan", "#n_live_tup", "#n_dead_tup"],
    ),
    ("pg_stat_user_indexes", &["#relid", "#indexrelid", "schemaname", "relname", "indexrelname", "#idx_scan"]),
    ("pg_stat_database", &["#datid", "datname", "#numbackends", "#xact_commit", "#xact_rollback"]),
    ("pg_statio_user_tables", &["#relid", "schemaname", "relname", "#heap_blks_read", "#heap_blks_hit"]),
    ("pg_stat_replication", &["#pid", "usename", "application_name", "client_addr", "state"]),
    ("pg_stat_ssl", &["#pid", "ssl", "version", "cipher", "#bits"]),
    (
        "pg_locks",
        &[
            "locktype",
            "#database",
            "#relation",
            "#page",
            "virtualxid",
            "transactionid",
            "#classid",
            "#objid",
            "virtualtransaction",
            "#pid",
            "mode",
            "granted",
            "fastpath",
        ],
    ),
    ("pg_prepared_statements", &["name", "statement", "prepare_time", "parameter_types", "from_sql"]),
    ("pg_prepared_xacts", &["transaction", "gid", "prepared", "owner", "database"]),
    ("pg_cursors", &["name", "statement", "is_holdable", "is_binary", "is_scrollable", "creation_time"]),
    ("pg_available_extensions", &["name", "default_version", "installed_version", "comment"]),
    ("pg_timezone_names", &["name", "abbrev", "utc_offset", "is_dst"]),
    ("pg_timezone_abbrevs", &["abbrev", "utc_offset", "is_dst"]),
    ("pg_parameter_acl", &["#oid", "parname", "paracl"]),
    ("pg_transform", &["#oid", "#trftype", "#trflang", "trffromsql", "trftosql"]),
];

/// Columns that tables lack and tools ask for, always null: integers (`#`) and lists of texts.
const MORE_COLUMNS: &[Relation] = &[
    ("pg_class", &["relacl", "reloptions", "#tableoid"]),
    ("pg_collation", &["colliculocale"]),
    ("pg_language", &["#tableoid"]),
    ("pg_namespace", &["#tableoid"]),
    ("pg_opclass", &["#tableoid"]),
    ("pg_operator", &["#tableoid"]),
    ("pg_opfamily", &["#tableoid"]),
    ("pg_proc", &["#tableoid"]),
    ("pg_rewrite", &["#tableoid"]),
    ("pg_trigger", &["#tableoid"]),
    ("pg_type", &["#tableoid"]),
];

fn with_more_columns(name: &str, table: Arc<dyn TableProvider>, more: &[&str]) -> Result<Arc<dyn TableProvider>> {
    let present = table.schema();
    let scan = LogicalPlanBuilder::scan(name, provider_as_source(table), None)?;
    let mut columns: Vec<Expr> = present.fields().iter().map(|field| ident(field.name())).collect();
    columns.extend(more.iter().filter_map(|column| {
        let (name, null) = match column.strip_prefix('#') {
            Some(name) => (name, ScalarValue::Int32(None)),
            None => (*column, ScalarValue::new_null_list(DataType::Utf8, true, 1)),
        };
        present.field_with_name(name).is_err().then(|| lit(null).alias(name))
    }));
    Ok(Arc::new(ViewTable::new(scan.project(columns)?.build()?, None)))
}

/// `pg_catalog` as one connection sees it.
#[derive(Debug)]
pub(super) struct PgCatalog {
    pub(super) tables: Arc<dyn SchemaProvider>,
    pub(super) settings: Vec<(String, String)>,
}

impl PgCatalog {
    fn rows(&self, view: &str) -> Vec<Row> {
        match view {
            "pg_settings" => self
                .settings
                .iter()
                .map(|(name, value)| {
                    let fixed =
                        [("category", "Galoo"), ("context", "user"), ("vartype", "string"), ("source", "default")];
                    let mut row: Row = fixed.map(|(column, value)| (column, value.to_owned())).to_vec();
                    row.extend([("name", name.clone()), ("setting", value.clone()), ("reset_val", value.clone())]);
                    row
                })
                .collect(),
            "pg_user" => vec![vec![("usename", OWNER.to_owned()), ("#usesysid", "10".to_owned())]],
            _ => Vec::new(),
        }
    }
}

#[async_trait]
impl SchemaProvider for PgCatalog {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.tables.table_names();
        names.extend(VIEWS.iter().map(|(name, _)| (*name).to_owned()));
        names.sort();
        names.dedup();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match VIEWS.iter().find(|(view, _)| *view == name) {
            Some((name, columns)) => table_of(columns, &self.rows(name)).map(Some),
            None => match (self.tables.table(name).await?, MORE_COLUMNS.iter().find(|(table, _)| *table == name)) {
                (Some(table), Some((_, more))) => with_more_columns(name, table, more).map(Some),
                (table, _) => Ok(table),
            },
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        VIEWS.iter().any(|(view, _)| *view == name) || self.tables.table_exist(name)
    }
}

/// `public`, and behind it `pg_catalog`.
#[derive(Debug)]
pub(super) struct Public {
    pub(super) tables: Arc<dyn SchemaProvider>,
    pub(super) behind: Arc<PgCatalog>,
}

#[async_trait]
impl SchemaProvider for Public {
    fn table_names(&self) -> Vec<String> {
        self.tables.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.tables.table(name).await? {
            None if name.starts_with("pg_") => self.behind.table(name).await,
            table => Ok(table),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.table_exist(name) || (name.starts_with("pg_") && self.behind.table_exist(name))
    }
}
