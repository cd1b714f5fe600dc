//! The aggregate of the rewrites: the value of at most one row.
//!
//! DataFusion takes a subquery about an outer row only as an aggregate. This one keeps what the subquery means: the value
//! of its one row, null without a row, and an error (21000) for more.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};

use super::SqlError;

/// The aggregate's name.
pub(super) const NAME: &str = "single_value";

/// `single_value(any)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct SingleValue {
    signature: Signature,
}

impl SingleValue {
    pub(super) fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for SingleValue {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Plan(format!("{NAME} takes one argument")))
    }

    /// The argument's field with its metadata: an object id stays one.
    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        let types: Vec<DataType> = fields.iter().map(|field| field.data_type().clone()).collect();
        let metadata = fields.first().map(|field| field.metadata().clone()).unwrap_or_default();
        Ok(Arc::new(Field::new(NAME, self.return_type(&types)?, true).with_metadata(metadata)))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Seen { kind: args.return_field.data_type().clone(), value: None }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let value = Field::new(format_state_name(args.name, "value"), args.return_type().clone(), true);
        let is_seen = Field::new(format_state_name(args.name, "is_seen"), DataType::Boolean, false);
        Ok(vec![Arc::new(value), Arc::new(is_seen)])
    }
}

/// The row that was seen.
#[derive(Debug)]
struct Seen {
    kind: DataType,
    value: Option<ScalarValue>,
}

impl Seen {
    fn see(&mut self, values: &ArrayRef, row: usize) -> Result<()> {
        if self.value.is_some() {
            let error = SqlError::new("21000", "more than one row returned by a subquery used as an expression");
            return Err(DataFusionError::External(Box::new(error)));
        }
        self.value = Some(ScalarValue::try_from_array(values, row)?);
        Ok(())
    }
}

impl Accumulator for Seen {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        (0..values.len()).try_for_each(|row| self.see(values, row))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        match &self.value {
            Some(value) => Ok(value.clone()),
            None => ScalarValue::try_from(&self.kind),
        }
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.as_ref().map_or(0, ScalarValue::size)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?, ScalarValue::Boolean(Some(self.value.is_some()))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [values, are_seen] = states else {
            return Err(DataFusionError::Internal(format!("{NAME} has a state of {} columns", states.len())));
        };
        let are_seen = are_seen.as_boolean();
        (0..values.len()).filter(|row| are_seen.value(*row)).try_for_each(|row| self.see(values, row))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::Int32Array;

    use super::*;

    fn seen(values: Vec<Option<i32>>) -> Result<Seen> {
        let mut seen = Seen { kind: DataType::Int32, value: None };
        let values: ArrayRef = Arc::new(Int32Array::from(values));
        seen.update_batch(&[values]).map(|()| seen)
    }

    fn merged(parts: Vec<Vec<Option<i32>>>) -> Result<ScalarValue> {
        let mut all = seen(Vec::new())?;
        for part in parts {
            let state = seen(part)?.state()?;
            all.merge_batch(&state.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?)?;
        }
        all.evaluate()
    }

    #[test]
    fn one_row_is_its_value_none_is_null_and_more_are_an_error() {
        for (parts, value) in [
            (vec![vec![Some(7)]], Some(7)),
            (vec![vec![], vec![Some(7)], vec![]], Some(7)),
            (vec![vec![], vec![]], None),
            (vec![vec![None]], None),
        ] {
            assert_eq!(merged(parts).unwrap(), ScalarValue::Int32(value));
        }
        for parts in [vec![vec![Some(7), Some(7)]], vec![vec![None], vec![Some(7)]]] {
            assert_eq!(SqlError::from(merged(parts).unwrap_err()).code, "21000");
        }
    }
}
