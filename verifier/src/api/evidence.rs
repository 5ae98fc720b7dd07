use std::path::PathBuf;

use hyper::{Response, header};
use serde::Serialize;
use tokio::sync::Semaphore;
use troth_core::identity::AgentId;
use troth_daemon::server::full;

use crate::{
    config::VerifierConfig,
    evidence::{self, Kept},
    rest::{self, Refusal, Reply},
};

/// Bundles that are read into memory at a time.
const READS: usize = 2;

/// The evidence that is kept, for administrators.
#[derive(Debug)]
pub(super) struct Evidence {
    directory: Option<PathBuf>,
    reads: Semaphore,
}

/// `results` of the list.
#[derive(Serialize)]
struct List {
    evidence: Vec<Kept>,
}

impl Evidence {
    pub(super) fn new(config: &VerifierConfig) -> Self {
        Self {
            directory: config.evidence_dir(),
            reads: Semaphore::new(READS),
        }
    }

    /// The bundles of a node; with `sequence=N` in the query, the gzipped bytes of one of them. A
    /// node that was removed may still have some.
    pub(super) async fn serve(&self, id: AgentId, query: &str) -> Reply {
        let Some(directory) = self.directory.clone() else {
            return Err(Refusal::not_found(
                "this verifier keeps no evidence: evidence_dir is not configured",
            ));
        };
        let sequence = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("sequence="));
        let Some(sequence) = sequence else {
            let list = blocking(move || evidence::list(&directory, &id)).await?;
            return Ok(rest::success(List { evidence: list }));
        };
        let sequence = sequence
            .parse()
            .map_err(|_| Refusal::bad_request("sequence is not a number"))?;
        let _turn = self.reads.acquire().await;
        let bundle = blocking(move || evidence::read(&directory, &id, sequence)).await?;
        let bundle = bundle.ok_or_else(|| Refusal::not_found("no such evidence"))?;
        let mut response = Response::new(full(bundle));
        let kind = header::HeaderValue::from_static("application/gzip");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }
}

/// Reads files where waiting for a disk keeps nobody else waiting.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let result = tokio::task::spawn_blocking(work).await;
    let result = result.map_err(|error| Refusal::internal(&error))?;
    result.map_err(|error| Refusal::internal(&error))
}
