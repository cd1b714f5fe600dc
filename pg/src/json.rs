//! `json_build_object(key, value, ...)`: a JSON text from pairs.
//!
//! DataFusion has no JSON. This one function is here because tools build their answers about the catalog with it; it is
//! right for any statement. Numbers and booleans stay what they are, everything else is a string.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct JsonBuildObject {
    signature: Signature,
}

impl JsonBuildObject {
    pub(super) fn new() -> Self {
        let any = vec![TypeSignature::Nullary, TypeSignature::VariadicAny];
        Self { signature: Signature::one_of(any, Volatility::Stable) }
    }
}

impl ScalarUDFImpl for JsonBuildObject {
    fn name(&self) -> &str {
        "json_build_object"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        if types.len() % 2 == 1 {
            return Err(DataFusionError::Plan("argument list must have even number of elements".to_owned()));
        }
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = args.args.iter().map(|arg| arg.to_array(args.number_rows)).collect::<Result<Vec<ArrayRef>>>()?;
        let options = FormatOptions::default();
        let formatters = arrays
            .iter()
            .map(|array| Ok(ArrayFormatter::try_new(array.as_ref(), &options)?))
            .collect::<Result<Vec<_>>>()?;
        let text = |column: usize, row: usize| -> Result<String> { Ok(formatters[column].value(row).try_to_string()?) };
        let quoted = |text: String| serde_json::Value::String(text).to_string();
        let objects = (0..args.number_rows).map(|row| {
            let mut members = Vec::with_capacity(arrays.len() / 2);
            for column in (0..arrays.len()).step_by(2) {
                let array = &arrays[column + 1];
                let value = text(column + 1, row)?;
                let is_bare = array.data_type().is_numeric() || *array.data_type() == DataType::Boolean;
                let value = match () {
                    () if array.is_null(row) || *array.data_type() == DataType::Null => "null".to_owned(),
                    () if is_bare && !value.contains(['N', 'i']) => value,
                    () => quoted(value),
                };
                members.push(format!("{} : {value}", quoted(text(column, row)?)));
            }
            Ok(Some(format!("{{{}}}", members.join(", "))))
        });
        Ok(ColumnarValue::Array(Arc::new(objects.collect::<Result<StringArray>>()?)))
    }
}
