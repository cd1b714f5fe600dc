//! The SQL standard's view of a game: `information_schema`, with Postgres' names for types.
//!
//! DataFusion's own has Arrow's names for types and lacks columns that tools ask for. This one has the relations that tools
//! read; those for which a game has nothing (keys, constraints, routines) are there and empty.

use std::sync::Arc;

use arrow_pg::datatypes::into_pg_type;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result;
use pgwire::api::Type;

use super::catalog::{OWNER, PUBLIC, Tables};
use super::relation::{Relation, Row, schema_of, table_of};

pub(super) const INFORMATION_SCHEMA: &str = "information_schema";

/// Relations and their columns (`relation` says what `#` means).
const RELATIONS: &[Relation] = &[
    (
        "tables",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "table_type",
            "self_referencing_column_name",
            "reference_generation",
            "user_defined_type_catalog",
            "user_defined_type_schema",
            "user_defined_type_name",
            "is_insertable_into",
            "is_typed",
            "commit_action",
        ],
    ),
    (
        "columns",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "#ordinal_position",
            "column_default",
            "is_nullable",
            "data_type",
            "#character_maximum_length",
            "#character_octet_length",
            "#numeric_precision",
            "#numeric_precision_radix",
            "#numeric_scale",
            "#datetime_precision",
            "interval_type",
            "#interval_precision",
            "character_set_name",
            "collation_catalog",
            "collation_schema",
            "collation_name",
            "domain_catalog",
            "domain_schema",
            "domain_name",
            "udt_catalog",
            "udt_schema",
            "udt_name",
            "dtd_identifier",
            "is_self_referencing",
            "is_identity",
            "identity_generation",
            "is_generated",
            "generation_expression",
            "is_updatable",
        ],
    ),
    ("schemata", &["catalog_name", "schema_name", "schema_owner", "sql_path"]),
    ("views", &["table_catalog", "table_schema", "table_name", "view_definition", "check_option", "is_updatable"]),
    (
        "table_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "constraint_type",
            "is_deferrable",
            "initially_deferred",
            "enforced",
        ],
    ),
    (
        "key_column_usage",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "#ordinal_position",
            "#position_in_unique_constraint",
        ],
    ),
    (
        "constraint_column_usage",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
        ],
    ),
    (
        "referential_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "unique_constraint_catalog",
            "unique_constraint_schema",
            "unique_constraint_name",
            "match_option",
            "update_rule",
            "delete_rule",
        ],
    ),
    (
        "routines",
        &[
            "specific_catalog",
            "specific_schema",
            "specific_name",
            "routine_catalog",
            "routine_schema",
            "routine_name",
            "routine_type",
            "data_type",
            "type_udt_name",
            "routine_definition",
            "external_language",
        ],
    ),
    (
        "parameters",
        &[
            "specific_catalog",
            "specific_schema",
            "specific_name",
            "#ordinal_position",
            "parameter_mode",
            "parameter_name",
            "data_type",
            "udt_name",
        ],
    ),
    ("sequences", &["sequence_catalog", "sequence_schema", "sequence_name", "data_type", "start_value", "increment"]),
    ("triggers", &["trigger_catalog", "trigger_schema", "trigger_name", "event_manipulation", "event_object_table"]),
    (
        "table_privileges",
        &["grantor", "grantee", "table_catalog", "table_schema", "table_name", "privilege_type", "is_grantable"],
    ),
];

/// The relations of one statement.
#[derive(Debug)]
pub(super) struct InformationSchema {
    database: String,
    public: Tables,
}

impl InformationSchema {
    pub(super) fn new(database: &str, public: Tables) -> Self {
        Self { database: database.to_owned(), public }
    }

    /// The relations themselves, for `pg_class`.
    pub(super) fn tables() -> Tables {
        RELATIONS.iter().map(|(name, columns)| ((*name).to_owned(), (schema_of(columns), TableType::View))).collect()
    }

    fn rows(&self, relation: &str) -> Vec<Row> {
        let place = |name: &str| {
            vec![
                ("table_catalog", self.database.clone()),
                ("table_schema", PUBLIC.to_owned()),
                ("table_name", name.to_owned()),
            ]
        };
        let yes_no = |yes: bool| if yes { "YES" } else { "NO" }.to_owned();
        match relation {
            "tables" => self
                .public
                .iter()
                .map(|(name, (_, kind))| {
                    let mut row = place(name);
                    let kind = if *kind == TableType::View { "VIEW" } else { "BASE TABLE" };
                    row.push(("table_type", kind.to_owned()));
                    row.extend([("is_insertable_into", yes_no(false)), ("is_typed", yes_no(false))]);
                    row
                })
                .collect(),
            "table_privileges" => self
                .public
                .keys()
                .map(|name| {
                    let mut row = place(name);
                    row.extend(
                        [("grantor", OWNER), ("grantee", "PUBLIC"), ("privilege_type", "SELECT")]
                            .map(|(column, value)| (column, value.to_owned())),
                    );
                    row.push(("is_grantable", yes_no(false)));
                    row
                })
                .collect(),
            "columns" => self
                .public
                .iter()
                .flat_map(|(name, (schema, _))| {
                    schema.fields().iter().enumerate().map(move |(index, field)| {
                        let kind = into_pg_type(field.data_type()).unwrap_or(Type::TEXT);
                        let mut row = place(name);
                        row.extend([
                            ("column_name", field.name().clone()),
                            ("#ordinal_position", (index + 1).to_string()),
                            ("is_nullable", yes_no(field.is_nullable())),
                            ("data_type", standard_name(&kind)),
                            ("udt_catalog", self.database.clone()),
                            ("udt_schema", "pg_catalog".to_owned()),
                            ("udt_name", kind.name().to_owned()),
                            ("dtd_identifier", (index + 1).to_string()),
                            ("is_self_referencing", yes_no(false)),
                            ("is_identity", yes_no(false)),
                            ("is_generated", "NEVER".to_owned()),
                            ("is_updatable", yes_no(false)),
                        ]);
                        let precision = match kind {
                            Type::INT2 => Some(16),
                            Type::INT4 => Some(32),
                            Type::INT8 => Some(64),
                            Type::FLOAT4 => Some(24),
                            Type::FLOAT8 => Some(53),
                            _ => None,
                        };
                        row.extend(precision.map(|bits: i32| ("#numeric_precision", bits.to_string())));
                        row.extend(precision.map(|_| ("#numeric_precision_radix", "2".to_owned())));
                        if [Type::TIMESTAMP, Type::TIMESTAMPTZ].contains(&kind) {
                            row.push(("#datetime_precision", "6".to_owned()));
                        }
                        row
                    })
                })
                .collect(),
            "schemata" => [PUBLIC, "pg_catalog", INFORMATION_SCHEMA]
                .iter()
                .map(|name| {
                    vec![
                        ("catalog_name", self.database.clone()),
                        ("schema_name", (*name).to_owned()),
                        ("schema_owner", OWNER.to_owned()),
                    ]
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// The name of a type in the SQL standard, as Postgres prints it.
fn standard_name(kind: &Type) -> String {
    let name = match *kind {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::TIMESTAMP => "timestamp without time zone",
        Type::TIMESTAMPTZ => "timestamp with time zone",
        Type::TIME => "time without time zone",
        _ if kind.name().starts_with('_') => "ARRAY",
        _ => kind.name(),
    };
    name.to_owned()
}

#[async_trait]
impl SchemaProvider for InformationSchema {
    fn table_names(&self) -> Vec<String> {
        RELATIONS.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((name, columns)) = RELATIONS.iter().find(|(relation, _)| *relation == name) else {
            return Ok(None);
        };
        table_of(columns, &self.rows(name)).map(Some)
    }

    fn table_exist(&self, name: &str) -> bool {
        RELATIONS.iter().any(|(relation, _)| *relation == name)
    }
}
