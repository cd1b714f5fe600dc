//! `approx_quantile(x, q)`: the value below which a share `q` of all values lies, within 1 % of itself.
//!
//! The same sketch as in rollups, so that a rollup shows what its SELECT gives to the last digit, in any order of events.

use std::{mem::size_of_val, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{DataType, Field, FieldRef, Float64Type},
};
use datafusion::{
    common::ScalarValue,
    error::{DataFusionError, Result},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::format_state_name,
    },
};
use galoo_storage::rollup::quantiles::Quantiles;

/// The function's name.
pub(crate) const NAME: &str = "approx_quantile";

#[derive(Debug, PartialEq, Eq, Hash)]
struct ApproxQuantile {
    signature: Signature,
}

/// Makes the function.
pub(crate) fn function() -> AggregateUDF {
    AggregateUDF::new_from_impl(ApproxQuantile { signature: Signature::user_defined(Volatility::Immutable) })
}

fn invalid(reason: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Plan(format!("{NAME}: {reason}"))
}

/// Reads a quantile.
pub(crate) fn quantile(value: &ScalarValue) -> Result<f64> {
    match value.cast_to(&DataType::Float64)? {
        ScalarValue::Float64(Some(quantile)) if (0.0..=1.0).contains(&quantile) => Ok(quantile),
        other => Err(invalid(format!("the quantile is {other}; it must be 0 to 1"))),
    }
}

impl AggregateUDFImpl for ApproxQuantile {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let is_number = |one: &DataType| one.is_numeric() || one.is_null();
        match types {
            [values, quantile] if is_number(values) && is_number(quantile) => Ok(vec![DataType::Float64; 2]),
            [_, _] => Err(invalid("takes numbers")),
            _ => Err(invalid(format!("takes a number and a quantile, not {} arguments", types.len()))),
        }
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Sketch::default()))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let field = |name, data_type| Arc::new(Field::new(format_state_name(args.name, name), data_type, true));
        Ok(vec![field("sketch", DataType::Binary), field("quantile", DataType::Float64)])
    }
}

/// Values, and which quantile of them is wanted: known once a row was seen.
#[derive(Debug, Default)]
struct Sketch {
    values: Quantiles,
    quantile: Option<f64>,
}

impl Sketch {
    fn want(&mut self, wanted: &ArrayRef) -> Result<()> {
        if self.quantile.is_none() && !wanted.is_empty() {
            self.quantile = Some(quantile(&ScalarValue::try_from_array(wanted, 0)?)?);
        }
        Ok(())
    }
}

impl Accumulator for Sketch {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [values, wanted] = values else { return Err(invalid("takes a number and a quantile")) };
        self.want(wanted)?;
        values.as_primitive::<Float64Type>().iter().flatten().for_each(|value| self.values.add(value));
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [sketches, wanted] = states else { return Err(invalid("a state is a sketch and a quantile")) };
        let wanted = wanted.as_primitive::<Float64Type>();
        self.quantile = self.quantile.or_else(|| wanted.iter().flatten().next());
        for mut sketch in sketches.as_binary::<i32>().iter().flatten() {
            let more = Quantiles::decode(&mut sketch).ok_or_else(|| invalid("a state is malformed"))?;
            self.values.merge(&more);
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut sketch = Vec::new();
        self.values.encode(&mut sketch);
        Ok(vec![ScalarValue::Binary(Some(sketch)), ScalarValue::Float64(self.quantile)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(self.quantile.and_then(|quantile| self.values.value(quantile))))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.heap_bytes()
    }
}
