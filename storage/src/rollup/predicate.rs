//! Predicates over batches, with the meaning that they have in SQL: what compares with null does not hold.

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Scalar},
    compute::{
        and, is_not_null, is_null,
        kernels::cmp::{eq, gt, gt_eq, lt, lt_eq, neq},
        or, prep_null_mask_filter,
    },
};
use galoo_proto::rollup::Test;

use super::definition::Predicate;
use crate::Result;

impl Predicate {
    /// Returns for which rows of its operand's column it holds.
    pub(super) fn holds(&self, column: &ArrayRef) -> Result<BooleanArray> {
        let Some((first, others)) = self.literals.split_first() else {
            return Ok(if self.test == Test::IsNull { is_null(column)? } else { is_not_null(column)? });
        };
        let compare = |literal: &ArrayRef| -> Result<BooleanArray> {
            let with = Scalar::new(literal.clone());
            let compared = match self.test {
                Test::IsNot => neq(column, &with),
                Test::Less => lt(column, &with),
                Test::AtMost => lt_eq(column, &with),
                Test::Greater => gt(column, &with),
                Test::AtLeast => gt_eq(column, &with),
                _ => eq(column, &with),
            }?;
            // Null is false.
            Ok(if compared.null_count() > 0 { prep_null_mask_filter(&compared) } else { compared })
        };
        others.iter().try_fold(compare(first)?, |holds, literal| {
            let also = compare(literal)?;
            Ok(if self.test == Test::IsNot { and(&holds, &also)? } else { or(&holds, &also)? })
        })
    }
}
