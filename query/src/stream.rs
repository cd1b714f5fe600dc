//! Partitions that read shards on blocking threads, a bounded number of batches ahead.

use std::{fmt, sync::Arc};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use datafusion::{
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{stream::RecordBatchReceiverStreamBuilder, streaming::PartitionStream},
};

/// Batches that wait to be taken; a reader that is further ahead pauses.
const BATCHES_AHEAD_MAX: usize = 4;

type Batches = Box<dyn Iterator<Item = galoo_storage::Result<RecordBatch>> + Send>;
type Open = Arc<dyn Fn() -> galoo_storage::Result<Batches> + Send + Sync>;

/// One partition of a table: opens its batches anew for every execution.
pub(crate) struct Partition {
    schema: SchemaRef,
    name: String,
    open: Open,
}

impl Partition {
    pub(crate) fn new(
        schema: SchemaRef,
        name: String,
        open: impl Fn() -> galoo_storage::Result<Batches> + Send + Sync + 'static,
    ) -> Self {
        Self { schema, name, open: Arc::new(open) }
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), BATCHES_AHEAD_MAX);
        let (batches, open) = (builder.tx(), self.open.clone());
        builder.spawn_blocking(move || {
            let failed = |error| DataFusionError::External(Box::new(error));
            for batch in open().map_err(failed)? {
                // The query ended: nobody wants the rest.
                if batches.blocking_send(Ok(batch.map_err(failed)?)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        builder.build()
    }
}
