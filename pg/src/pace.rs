//! Plans that yield: a statement must leave the processor often enough to be stopped, and to let others run.
//!
//! DataFusion's operators yield when their leaves have been asked often enough. A join can turn one batch of a leaf into
//! millions of rows, or compare millions of pairs without finding one, and does not yield meanwhile: such a statement
//! cannot be cancelled, and holds a thread of the runtime. So joins are made to count towards the budget of their task, and
//! joins that compare all pairs get their input in small slices with a yield after each. The whole plan runs in a task of
//! its own, so that the connection hears a cancel request at once, whatever the plan does.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::{RecordBatchReceiverStream, RecordBatchStreamAdapter};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties, execute_stream,
};
use futures::{StreamExt, stream};

/// Rows of a slice. Each is compared with all rows of the other side before the next yield.
const SLICE_ROWS: usize = 64;

/// Batches that wait between the plan and the connection. Over it the plan waits for the client.
const BATCHES_AHEAD_MAX: usize = 1;

/// Runs a plan in a task of its own; dropping the stream stops it at its next yield.
pub(super) fn run(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
    let mut batches = execute_stream(with_pauses(plan)?, context)?;
    let mut task = RecordBatchReceiverStream::builder(batches.schema(), BATCHES_AHEAD_MAX);
    let sender = task.tx();
    task.spawn(async move {
        while let Some(batch) = batches.next().await {
            // A closed channel means that the client has what it wanted.
            if sender.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    Ok(task.build())
}

/// Puts pauses into a plan where it may run long without one.
fn with_pauses(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let is_all_pairs = matches!(node.name(), "NestedLoopJoinExec" | "CrossJoinExec");
        if !is_all_pairs && !node.name().ends_with("JoinExec") && node.name() != "UnnestExec" {
            return Ok(Transformed::no(node));
        }
        let node = match node.children().as_slice() {
            [left, right] if is_all_pairs => {
                let right = Arc::new(Paced { input: Arc::clone(right) });
                let children: Vec<Arc<dyn ExecutionPlan>> = vec![Arc::clone(left), right];
                node.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))?
            }
            _ => node,
        };
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// Hands its input on in slices, with a yield after each.
#[derive(Debug)]
struct Paced {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Paced {
    fn fmt_as(&self, _: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Paced: rows={SLICE_ROWS}")
    }
}

impl ExecutionPlan for Paced {
    fn name(&self) -> &str {
        "Paced"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self { input })),
            Err(children) => Err(DataFusionError::Internal(format!("Paced has {} children", children.len()))),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let schema = input.schema();
        let slices = input.flat_map(|batch| stream::iter(slices(batch))).then(|slice| async move {
            tokio::task::yield_now().await;
            slice
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, slices)))
    }
}

fn slices(batch: Result<RecordBatch>) -> Vec<Result<RecordBatch>> {
    match batch {
        Ok(batch) => (0..batch.num_rows())
            .step_by(SLICE_ROWS)
            .map(|start| Ok(batch.slice(start, SLICE_ROWS.min(batch.num_rows() - start))))
            .collect(),
        Err(error) => vec![Err(error)],
    }
}
