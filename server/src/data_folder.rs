//! A node's data folder: whose it is, in which format, and that nobody else has it open.
//!
//! ```text
//! LOCK          held while a node runs
//! node.json     {"format":1,"cluster_id":"…","node_id":1,"addrs":["…",…],"joining":true}: written when the node becomes
//!               part of a cluster; `addrs` are those that the cluster is formed of, by node id (absent for a cluster of
//!               one); written once more without `joining` when all of them have joined
//! log/          the shared Raft log
//! data/         RocksDB
//! segments/     Parquet files
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use galoo_proto::NodeId;
use serde::{Deserialize, Serialize};

/// The newest format of a data folder that this version knows.
const FORMAT: u32 = 1;

/// Whose a data folder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    format: u32,
    /// The cluster, 32 hex digits.
    pub cluster_id: String,
    node_id: u64,
    /// The addresses that the cluster was formed of, by node id; empty for a cluster of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addrs: Vec<String>,
    /// Others may not have joined yet: the node takes part in nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    joining: bool,
}

impl Identity {
    /// The only node of a cluster.
    pub fn alone(cluster_id: String) -> Self {
        Self { format: FORMAT, cluster_id, node_id: 1, addrs: Vec::new(), joining: false }
    }

    /// A node of a cluster that is being formed of `addrs`.
    pub fn joining(cluster_id: String, node: NodeId, addrs: Vec<String>) -> Self {
        Self { format: FORMAT, cluster_id, node_id: node.0, addrs, joining: true }
    }

    /// The same node once all others have joined.
    pub fn begun(self) -> Self {
        Self { joining: false, ..self }
    }

    /// Whether all nodes of the cluster have joined.
    pub fn has_begun(&self) -> bool {
        !self.joining
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        NodeId(self.node_id)
    }
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// The system refused.
    #[error("data folder: cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Another process holds it.
    #[error("data folder {path} is in use by another process", path = .0.display())]
    InUse(PathBuf),
    /// Its identity does not read.
    #[error("data folder: {path} does not read: {reason}", path = path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A newer version wrote it.
    #[error("data folder {path} has format {found}; this version knows up to {FORMAT}", path = path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A locked data folder.
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if it is missing and locks it.
    pub fn open(path: &Path) -> Result<Self, DataFolderError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DataFolderError::Io { action, path, source }
        };
        let missing: Vec<_> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        fs::create_dir_all(path).map_err(failed("create", path))?;
        for made in missing {
            let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            sync(parent).map_err(failed("sync", parent))?;
        }
        let lock_path = path.join("LOCK");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataFolderError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed("lock", &lock_path)(source)),
        }
    }

    /// The path of a folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the names in it durable: what is synced below a name that is lost is lost.
    pub fn sync(&self) -> Result<(), DataFolderError> {
        sync(&self.path).map_err(|source| DataFolderError::Io { action: "sync", path: self.path.clone(), source })
    }

    /// Reads whose the folder is; `None` when it is nobody's yet.
    pub fn identity(&self) -> Result<Option<Identity>, DataFolderError> {
        let path = self.path.join("node.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataFolderError::Io { action: "read", path, source }),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable =
            |error: serde_json::Error| DataFolderError::Identity { path: path.clone(), reason: error.to_string() };
        let Format { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if format > FORMAT {
            return Err(DataFolderError::Newer { path: self.path.clone(), found: format });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
    }

    /// Writes whose the folder is, durably.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), DataFolderError> {
        let path = self.path.join("node.json");
        let write = || -> std::io::Result<()> {
            let draft = self.path.join("node.json.draft");
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec(identity)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataFolderError::Io { action: "write", path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_opened_once_and_keeps_its_identity() {
        let folder = tempfile::tempdir().expect("folder");
        let open = DataFolder::open(folder.path()).expect("opens");
        assert!(matches!(DataFolder::open(folder.path()), Err(DataFolderError::InUse(_))));
        assert_eq!(open.identity().expect("reads"), None);
        let joining = Identity::joining("ab".repeat(16), NodeId(3), vec!["a:1".into(), "a:2".into(), "a:3".into()]);
        for identity in [joining.clone(), joining.begun(), Identity::alone("cd".repeat(16))] {
            open.set_identity(&identity).expect("writes");
            assert_eq!(open.identity().expect("reads"), Some(identity));
        }
        drop(open);
        let open = DataFolder::open(folder.path()).expect("opens again");
        assert_eq!(open.identity().expect("reads"), Some(Identity::alone("cd".repeat(16))));
    }

    #[test]
    fn a_newer_or_broken_identity_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let open = DataFolder::open(folder.path()).expect("opens");
        fs::write(folder.path().join("node.json"), r#"{"format":99,"other":true}"#).expect("writes");
        assert!(matches!(open.identity(), Err(DataFolderError::Newer { found: 99, .. })));
        fs::write(folder.path().join("node.json"), "rubbish").expect("writes");
        assert!(matches!(open.identity(), Err(DataFolderError::Identity { .. })));
    }
}
