//! Functions that Postgres has and DataFusion has not, as tools use them in statements about the catalog.
//!
//! Most have one answer here whatever they are asked (everything is visible and may be read, nothing has a comment). They
//! take any arguments, so that a form never seen before works too.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, AsArray, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::pg_catalog as pg;

use super::catalog::{OWNER, PUBLIC};
use super::json::JsonBuildObject;
use super::session::{Identity, Scope, Settings, VERSION_TEXT};
use super::single_value::SingleValue;
use super::to_char::ToChar;

/// Functions that are true of everything.
const TRUE: &[&str] = &[
    "has_any_column_privilege",
    "has_column_privilege",
    "has_database_privilege",
    "has_function_privilege",
    "has_language_privilege",
    "has_schema_privilege",
    "has_sequence_privilege",
    "has_table_privilege",
    "has_tablespace_privilege",
    "has_type_privilege",
    "pg_collation_is_visible",
    "pg_conversion_is_visible",
    "pg_function_is_visible",
    "pg_has_role",
    "pg_opclass_is_visible",
    "pg_operator_is_visible",
    "pg_opfamily_is_visible",
    "pg_statistics_obj_is_visible",
    "pg_table_is_visible",
    "pg_ts_config_is_visible",
    "pg_ts_dict_is_visible",
    "pg_ts_parser_is_visible",
    "pg_ts_template_is_visible",
    "pg_type_is_visible",
];

/// Functions that are false of everything.
const FALSE: &[&str] = &[
    "pg_advisory_unlock",
    "pg_is_in_recovery",
    "pg_is_other_temp_schema",
    "pg_relation_is_publishable",
    "row_security_active",
];

/// Functions that know nothing: no comments, no definitions, no addresses.
const NULL_TEXT: &[&str] = &[
    "col_description",
    "inet_client_addr",
    "inet_server_addr",
    "obj_description",
    "pg_advisory_unlock_all",
    "pg_get_function_arguments",
    "pg_get_function_identity_arguments",
    "pg_get_function_result",
    "pg_get_function_sqlbody",
    "pg_get_functiondef",
    "pg_get_indexdef",
    "pg_get_partition_constraintdef",
    "pg_get_ruledef",
    "pg_get_serial_sequence",
    "pg_get_statisticsobjdef",
    "pg_get_triggerdef",
    "pg_get_viewdef",
    "pg_relation_filepath",
    "pg_tablespace_location",
    "shobj_description",
];

/// Functions that count nothing.
const ZERO: &[&str] = &[
    "pg_database_size",
    "pg_indexes_size",
    "pg_my_temp_schema",
    "pg_relation_size",
    "pg_stat_get_numscans",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
];

/// Adds the functions to a context. Cost: some tens of microseconds.
pub(super) fn register(context: &SessionContext, identity: &Identity, settings: &Arc<Mutex<Settings>>) {
    for function in [
        pg::create_current_schemas_udf(),
        pg::format_type::create_format_type_udf(),
        pg::pg_get_expr_udf::create_pg_get_expr_udf(),
        pg::create_pg_get_partkeydef_udf(),
        pg::create_pg_get_statisticsobjdef_columns_udf(),
        pg::create_pg_encoding_to_char_udf(),
        pg::create_pg_get_constraintdef(),
        pg::create_pg_get_partition_ancestors_udf(),
        pg::quote_ident_udf::create_quote_ident_udf(),
        pg::quote_ident_udf::create_parse_ident_udf(),
        pg::array_bounds_udf::create_array_upper_udf(),
        pg::array_bounds_udf::create_array_lower_udf(),
    ] {
        context.register_udf(function);
    }
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let mut answers = vec![
        ("version", text(VERSION_TEXT)),
        ("current_database", text(&identity.database)),
        ("current_schema", text(PUBLIC)),
        ("session_user", text(&identity.user)),
        ("current_user", text(&identity.user)),
        ("current_role", text(&identity.user)),
        ("user", text(&identity.user)),
        ("pg_get_userbyid", text(OWNER)),
        ("pg_backend_pid", ScalarValue::Int32(Some(identity.pid))),
        ("pg_char_to_encoding", ScalarValue::Int32(Some(6))),
        ("inet_server_port", ScalarValue::Int32(None)),
        ("txid_current", ScalarValue::Int64(Some(1))),
        ("pg_size_pretty", text("0 bytes")),
        ("getdatabaseencoding", text("UTF8")),
    ];
    answers.extend(TRUE.iter().map(|name| (*name, ScalarValue::Boolean(Some(true)))));
    answers.extend(FALSE.iter().map(|name| (*name, ScalarValue::Boolean(Some(false)))));
    answers.extend(NULL_TEXT.iter().map(|name| (*name, ScalarValue::Utf8(None))));
    answers.extend(ZERO.iter().map(|name| (*name, ScalarValue::Int64(Some(0)))));
    for (name, answer) in answers {
        context.register_udf(ScalarUDF::new_from_impl(Fixed { name, answer, signature: any() }));
    }
    context.register_udaf(AggregateUDF::new_from_impl(SingleValue::new()));
    context.register_udf(ScalarUDF::new_from_impl(ToChar::new()));
    context.register_udf(ScalarUDF::new_from_impl(JsonBuildObject::new()));
    let inner = datafusion::functions_nested::string::array_to_string_udf();
    context.register_udf(ScalarUDF::new_from_impl(ArrayToString { inner, signature: any() }));
    for name in ["current_setting", "set_config"] {
        context.register_udf(ScalarUDF::new_from_impl(Setting { name, settings: settings.clone(), signature: any() }));
    }
}

fn any() -> Signature {
    Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], Volatility::Stable)
}

/// A function with one answer.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Fixed {
    name: &'static str,
    answer: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Fixed {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.answer.data_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.answer.clone()))
    }
}

/// `array_to_string`, which takes a text as it is: the catalog's lists of rights and options are texts here, and null.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ArrayToString {
    inner: Arc<ScalarUDF>,
    signature: Signature,
}

impl ScalarUDFImpl for ArrayToString {
    fn name(&self) -> &str {
        "array_to_string"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.first() {
            Some(text) if text.data_type() == DataType::Utf8 => Ok(text.clone()),
            _ => self.inner.invoke_with_args(args)?.cast_to(&DataType::Utf8, None),
        }
    }
}

/// `current_setting(name [, missing_ok])` and `set_config(name, value, is_local)`.
#[derive(Debug)]
struct Setting {
    name: &'static str,
    settings: Arc<Mutex<Settings>>,
    signature: Signature,
}

impl PartialEq for Setting {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.settings, &other.settings)
    }
}

impl Eq for Setting {}

impl Hash for Setting {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl Setting {
    fn answer(&self, name: &str, value: Option<&str>, flag: Option<bool>) -> Result<Option<String>> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let error = |error: super::SqlError| DataFusionError::External(Box::new(error));
        if self.name == "set_config" {
            let scope = if flag == Some(true) { Scope::Local } else { Scope::Session };
            settings.set(scope, name, value.unwrap_or_default()).map_err(error)?;
            return Ok(settings.get(name));
        }
        match settings.show(name) {
            Ok(value) => Ok(Some(value)),
            Err(_) if flag == Some(true) => Ok(None),
            Err(missing) => Err(error(missing)),
        }
    }
}

impl ScalarUDFImpl for Setting {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let text = |index: usize| {
            arrays.get(index).map(|array| datafusion::arrow::compute::cast(array, &DataType::Utf8)).transpose()
        };
        let names = text(0)?.ok_or_else(|| DataFusionError::Plan(format!("function {} expects a name", self.name)))?;
        let is_set = self.name == "set_config";
        let values = if is_set { text(1)? } else { None };
        let flags = arrays.get(if is_set { 2 } else { 1 }).and_then(|array| array.as_boolean_opt());
        let answers = names
            .as_string::<i32>()
            .iter()
            .enumerate()
            .map(|(row, name)| {
                let Some(name) = name else { return Ok(None) };
                let value =
                    values.as_ref().map(|values| values.as_string::<i32>()).filter(|values| values.is_valid(row));
                let flag = flags.filter(|flags| flags.is_valid(row)).map(|flags| flags.value(row));
                self.answer(name, value.map(|values| values.value(row)), flag)
            })
            .collect::<Result<StringArray>>()?;
        if args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_))) {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answers, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(answers)))
    }
}
