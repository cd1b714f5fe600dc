//! What tools ask about the database itself: `pg_catalog`, its functions and its types.
//!
//! The tables are those of `datafusion-pg-catalog`. Its own set-up is not used, for two reasons: it decodes 60 tables each
//! time (tens of milliseconds, here done once a process), and it numbers objects anew each time, while a tool asks for an
//! object's id in one statement and uses it in the next, often on another connection. So a game has one provider for the
//! life of the process, and ids stay the same; what it lists (names and schemas only, never a cut) is taken anew from each
//! statement's context. Only statements that name something of the catalog pay for this.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, SchemaProvider};
use datafusion::datasource::TableType;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::tokenizer::Token;
use datafusion_pg_catalog::pg_catalog::catalog_info::CatalogInfo;
use datafusion_pg_catalog::pg_catalog::context::{PgCatalogContextProvider, Role};
use datafusion_pg_catalog::pg_catalog::generate_series_arg_coercion::CoerceIntArgsToBigInt;
use datafusion_pg_catalog::pg_catalog::oid_type_planner::PgOidTypePlanner;
use datafusion_pg_catalog::pg_catalog::{PG_CATALOG_TABLES, PgCatalogSchemaProvider, PgCatalogStaticTables};

use super::information_schema::{INFORMATION_SCHEMA, InformationSchema};
use super::pg_views::{PgCatalog, Public};
use super::rows::wire_type;
use super::session::{Identity, Settings};
use super::{SqlBackend, SqlError, functions};

/// The schema of a game's own tables.
pub(super) const PUBLIC: &str = "public";

const PG_CATALOG: &str = "pg_catalog";

/// Databases besides the games: they have a catalog and no tables, so that tools can connect and list.
pub(super) const EMPTY_DATABASES: &[&str] = &["postgres", "template1", "galoo"];

/// Databases whose object ids are remembered. Over it all ids are forgotten and given anew.
const PROVIDERS_MAX: usize = 2_000;

/// The user that owns everything.
pub(super) const OWNER: &str = "galoo";

type Provider = PgCatalogSchemaProvider<Shelf, Roles>;

/// The providers of all databases, made when first asked for.
#[derive(Default)]
pub(super) struct Catalogs {
    providers: Mutex<HashMap<String, (Arc<Provider>, Shelf)>>,
}

/// Words that only statements about the catalog use, besides all that begin with `pg_`.
const CATALOG_WORDS: &[&str] = &[
    "array_lower",
    "array_upper",
    "col_description",
    "current_catalog",
    "current_database",
    "current_role",
    "current_schema",
    "current_schemas",
    "current_setting",
    "current_user",
    "format_type",
    "generate_subscripts",
    "getdatabaseencoding",
    "has_any_column_privilege",
    "has_column_privilege",
    "has_database_privilege",
    "has_function_privilege",
    "has_schema_privilege",
    "has_sequence_privilege",
    "has_table_privilege",
    "inet_client_addr",
    "inet_server_addr",
    "inet_server_port",
    "information_schema",
    "obj_description",
    "quote_ident",
    "regclass",
    "regnamespace",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "session_user",
    "set_config",
    "shobj_description",
    "to_char",
    "to_regclass",
    "to_regtype",
    "txid_current",
    "version",
];

/// Whether a statement asks about the database itself.
pub(super) fn is_named_in(tokens: &[Token]) -> bool {
    tokens.iter().enumerate().any(|(index, token)| match token {
        Token::Word(word) => {
            let name = word.value.to_ascii_lowercase();
            name.starts_with("pg_")
                || CATALOG_WORDS.contains(&name.as_str())
                // `user` alone is a function, after a `.` or as a quoted name a column.
                || (name == "user"
                    && word.quote_style.is_none()
                    && index > 0
                    && matches!(tokens.get(index - 1), Some(Token::Word(before)) if before.value.eq_ignore_ascii_case("select")))
        }
        _ => false,
    })
}

/// Whether a statement casts a name to an object id, which only the rewrites can do.
pub(super) fn casts_to_oid(tokens: &[Token]) -> bool {
    let kinds =
        ["to_regclass", "to_regtype", "regclass", "regnamespace", "regproc", "regprocedure", "regrole", "regtype"];
    tokens.iter().any(|token| match token {
        Token::Word(word) => kinds.iter().any(|kind| word.value.eq_ignore_ascii_case(kind)),
        _ => false,
    })
}

impl Catalogs {
    /// Returns the context with the catalog, its functions and its types added.
    pub(super) async fn install(
        &self,
        context: SessionContext,
        identity: &Identity,
        settings: &Arc<Mutex<Settings>>,
        backend: &dyn SqlBackend,
    ) -> Result<SessionContext, SqlError> {
        let database = identity.database.as_str();
        let inner = context
            .catalog(database)
            .ok_or_else(|| SqlError::new("XX000", format!("context has no catalog \"{database}\"")))?;
        let (provider, shelf) = self.provider(database)?;
        let public = list(&inner).await?;
        shelf.fill(database, backend.games(), &public, &provider)?;
        let information = Arc::new(InformationSchema::new(database, public));
        let settings_here = settings.lock().unwrap_or_else(PoisonError::into_inner).all();
        let pg_catalog = Arc::new(PgCatalog { tables: provider, settings: settings_here });
        let catalog = Arc::new(Layered { inner, pg_catalog, information });

        let state = SessionStateBuilder::new_from_existing(context.state())
            .with_type_planner(Arc::new(PgOidTypePlanner))
            .build();
        let context = SessionContext::new_with_state(state);
        // DataFusion's own information_schema would shadow the one of the catalog.
        context.state_ref().write().config_mut().options_mut().catalog.information_schema = false;
        context.register_catalog(database, catalog);
        functions::register(&context, identity, settings);
        context.register_udtf("pg_get_keywords", static_tables()?.pg_get_keywords.clone());
        CoerceIntArgsToBigInt::widen(&context);
        Ok(context)
    }

    fn provider(&self, database: &str) -> Result<(Arc<Provider>, Shelf), SqlError> {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((provider, shelf)) = providers.get(database) {
            return Ok((provider.clone(), shelf.clone()));
        }
        if providers.len() >= PROVIDERS_MAX {
            providers.clear();
        }
        let shelf = Shelf::default();
        let provider = Arc::new(PgCatalogSchemaProvider::try_new(shelf.clone(), static_tables()?, Roles)?);
        providers.insert(database.to_owned(), (provider.clone(), shelf.clone()));
        Ok((provider, shelf))
    }
}

/// The tables that are the same in every database, decoded once.
fn static_tables() -> Result<Arc<PgCatalogStaticTables>, SqlError> {
    static TABLES: OnceLock<Arc<PgCatalogStaticTables>> = OnceLock::new();
    if let Some(tables) = TABLES.get() {
        return Ok(tables.clone());
    }
    let tables = Arc::new(PgCatalogStaticTables::try_new()?);
    Ok(TABLES.get_or_init(|| tables).clone())
}

/// The tables of a schema: name, columns and whether it is a view.
pub(super) type Tables = BTreeMap<String, (SchemaRef, TableType)>;

/// A table's columns with the types in which their values are sent.
fn as_sent(schema: &Schema) -> SchemaRef {
    let fields =
        schema.fields().iter().map(|field| field.as_ref().clone().with_data_type(wire_type(field.data_type())));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Lists a game's own tables.
async fn list(catalog: &Arc<dyn CatalogProvider>) -> Result<Tables, SqlError> {
    let mut tables = Tables::new();
    if let Some(schema) = catalog.schema(PUBLIC) {
        for name in schema.table_names() {
            if let Some(table) = schema.table(&name).await? {
                tables.insert(name, (as_sent(&table.schema()), table.table_type()));
            }
        }
    }
    Ok(tables)
}

/// What a provider lists. It holds names and schemas only, so that it pins no cut.
#[derive(Debug, Clone, Default)]
struct Shelf(Arc<RwLock<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    databases: Vec<String>,
    database: String,
    schemas: BTreeMap<String, Tables>,
}

impl Shelf {
    fn fill(&self, database: &str, games: Vec<String>, public: &Tables, provider: &Provider) -> Result<(), SqlError> {
        let mut contents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        contents.database = database.to_owned();
        contents.databases = games;
        contents.databases.push("postgres".to_owned());
        if !contents.databases.iter().any(|name| name == database) {
            contents.databases.push(database.to_owned());
        }
        contents.databases.sort();
        contents.databases.dedup();
        contents.schemas.insert(PUBLIC.to_owned(), public.clone());
        if !contents.schemas.contains_key(PG_CATALOG) {
            let mut tables = Tables::new();
            for name in PG_CATALOG_TABLES {
                if let Some(table) = provider.build_table_by_name(name)? {
                    tables.insert((*name).to_owned(), (table.schema(), TableType::Base));
                }
            }
            contents.schemas.insert(PG_CATALOG.to_owned(), tables);
            contents.schemas.insert(INFORMATION_SCHEMA.to_owned(), InformationSchema::tables());
        }
        Ok(())
    }

    fn read<T>(&self, catalog: &str, read: impl FnOnce(&BTreeMap<String, Tables>) -> Option<T>) -> Option<T> {
        let contents = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // As in Postgres, a database lists the names of the others but not what is in them.
        if contents.database == catalog { read(&contents.schemas) } else { None }
    }
}

#[async_trait]
impl CatalogInfo for Shelf {
    async fn catalog_names(&self) -> Result<Vec<String>, DataFusionError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).databases.clone())
    }

    async fn schema_names(&self, catalog_name: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        Ok(self.read(catalog_name, |schemas| Some(schemas.keys().cloned().collect())))
    }

    async fn table_names(&self, catalog_name: &str, schema_name: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        Ok(self.read(catalog_name, |schemas| Some(schemas.get(schema_name)?.keys().cloned().collect())))
    }

    async fn table_schema(
        &self,
        catalog_name: &str,
        schema_name: &str,
        table_name: &str,
    ) -> Result<Option<SchemaRef>, DataFusionError> {
        Ok(self.read(catalog_name, |schemas| Some(schemas.get(schema_name)?.get(table_name)?.0.clone())))
    }

    async fn table_type(
        &self,
        catalog_name: &str,
        schema_name: &str,
        table_name: &str,
    ) -> Result<Option<TableType>, DataFusionError> {
        Ok(self.read(catalog_name, |schemas| Some(schemas.get(schema_name)?.get(table_name)?.1)))
    }
}

/// The one user.
#[derive(Debug, Clone)]
struct Roles;

#[async_trait]
impl PgCatalogContextProvider for Roles {
    async fn roles(&self) -> Vec<String> {
        vec![OWNER.to_owned()]
    }

    async fn role(&self, name: &str) -> Option<Role> {
        Some(Role {
            name: name.to_owned(),
            is_superuser: false,
            can_login: true,
            can_create_db: false,
            can_create_role: false,
            can_create_user: false,
            can_replication: false,
            grants: Vec::new(),
            inherited_roles: Vec::new(),
        })
    }
}

/// A game's catalog with the two schemas about itself.
#[derive(Debug)]
struct Layered {
    inner: Arc<dyn CatalogProvider>,
    pg_catalog: Arc<PgCatalog>,
    information: Arc<InformationSchema>,
}

impl CatalogProvider for Layered {
    fn schema_names(&self) -> Vec<String> {
        let mut names = self.inner.schema_names();
        names.retain(|name| name != PG_CATALOG && name != INFORMATION_SCHEMA);
        names.extend([PG_CATALOG.to_owned(), INFORMATION_SCHEMA.to_owned()]);
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            PG_CATALOG => Some(self.pg_catalog.clone()),
            INFORMATION_SCHEMA => Some(self.information.clone()),
            PUBLIC => {
                let tables = self.inner.schema(PUBLIC)?;
                Some(Arc::new(Public { tables, behind: self.pg_catalog.clone() }))
            }
            name => self.inner.schema(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::split;

    #[test]
    fn only_statements_about_the_catalog_pay_for_it() {
        let named = |sql: &str| is_named_in(&split(sql).unwrap()[0].tokens);
        assert!(named("select * from pg_catalog.pg_class"));
        assert!(named("SELECT VERSION()"));
        assert!(named("select user"));
        assert!(named("select 'events'::regclass"));
        assert!(!named("select t.user from events t where event_type = 'pg_class'"));
        assert!(!named("select count(*) from events"));
    }
}
