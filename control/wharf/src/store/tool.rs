//! `wharf store`: copies of whole stores, for operators.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tracing::info;
use wharf_store::{
    Copied, CopyError, Etcd, EtcdSink, Moment, Redb, RedbSink, Sink, SnapshotReader, SnapshotWriter, Source,
    copy,
};

use super::{EtcdOptions, Location};

/// Copies that take longer tell how far they are, this often.
const PROGRESS: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write all objects of a store to a file. A server over a file has to be stopped before, one over etcd may
    /// go on; certificates and keys (pki in the server's --root) are not in it
    Snapshot {
        /// Replaced if it is there; readable by its owner alone, for it holds Secrets
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Make a store of what `snapshot` wrote. Servers of the store have to be stopped before
    Restore {
        file: PathBuf,
        #[command(flatten)]
        place: Place,
        /// Replace a store that is there
        #[arg(long)]
        force: bool,
    },
    /// Copy a store to another place or engine. Servers of both have to be stopped before
    Migrate {
        /// redb (the file under --root), redb:FILE, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
        #[arg(long)]
        from: Location,
        /// The same
        #[arg(long)]
        to: Location,
        #[command(flatten)]
        access: Access,
        /// Replace a store that is there
        #[arg(long)]
        force: bool,
    },
}

#[derive(Args)]
struct Place {
    /// redb (the file under --root), redb:FILE, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
    #[arg(long, default_value = "redb")]
    store: Location,
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
struct Access {
    /// The server's directory
    #[arg(long, default_value = crate::server::ROOT)]
    root: PathBuf,
    #[command(flatten)]
    etcd: EtcdOptions,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let said = match options.command {
        Command::Snapshot { file, place: Place { store, access } } => {
            let source = access.read(&store).await?;
            let moment = source.moment;
            let copied = told(source, SnapshotWriter::create(&file, moment).map_err(explained)?).await?;
            let Copied { objects, revision } = copied;
            format!("{}: {objects} objects, as they were at revision {revision}", file.display())
        }
        Command::Restore { file, place: Place { store, access }, force } => {
            let snapshot = SnapshotReader::open(&file).map_err(explained)?;
            access.write(snapshot.source().map_err(explained)?, &store, force).await?
        }
        Command::Migrate { from, to, access, force } => {
            anyhow::ensure!(from != to, "--from and --to are the same store");
            access.write(access.read(&from).await?, &to, force).await?
        }
    };
    writeln!(std::io::stdout(), "{said}").context("tell the outcome")
}

impl Access {
    async fn read(&self, store: &Location) -> anyhow::Result<Source> {
        let source = match store {
            Location::Redb(path) => {
                let store = Redb::open_existing(self.file(path.as_deref())).await;
                Source::of(Arc::new(store.map_err(explained)?)).await
            }
            Location::Etcd { members, prefix } => {
                let config = self.etcd.config(members.clone(), prefix.clone())?;
                let opened = Etcd::open_existing(config).await.map_err(|error| self.advised(error));
                Source::of(Arc::new(opened?)).await
            }
        };
        source.map_err(explained)
    }

    /// Copies `source` to `store`, and tells what there is to say.
    async fn write(&self, source: Source, store: &Location, force: bool) -> anyhow::Result<String> {
        let moment: Moment = source.moment;
        let (place, copied) = match store {
            Location::Redb(path) => {
                let file = self.file(path.as_deref());
                if let Some(folder) = file.parent() {
                    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
                }
                let sink = RedbSink::begin(&file, moment, force).map_err(explained)?;
                (file.display().to_string(), told(source, sink).await?)
            }
            Location::Etcd { members, prefix } => {
                let config = self.etcd.config(members.clone(), prefix.clone())?;
                let sink =
                    EtcdSink::begin(config, moment, force).await.map_err(|error| self.advised(error))?;
                (format!("etcd://{}/{prefix}", members.join(",")), told(source, sink).await?)
            }
        };
        let Copied { objects, revision } = copied;
        Ok(format!(
            "{place}: {objects} objects, as they were at revision {}; the store goes on from {revision}",
            moment.revision
        ))
    }

    /// As [`explained`], of an etcd that was asked for the first time.
    fn advised(&self, error: CopyError) -> anyhow::Error {
        let error = explained(error);
        anyhow::anyhow!("{error}{}", self.etcd.advice(&error.to_string()))
    }

    fn file(&self, named: Option<&Path>) -> PathBuf {
        named.map_or_else(|| crate::server::store_file(&self.root), Path::to_owned)
    }
}

/// Copies, and tells every second how far it is.
async fn told(source: Source, sink: impl Sink) -> anyhow::Result<Copied> {
    let mut last = Instant::now();
    let progress = |objects| {
        if last.elapsed() >= PROGRESS {
            last = Instant::now();
            info!(objects, "copied so far");
        }
    };
    copy(source, sink, progress).await.map_err(explained)
}

/// With all causes, and with what to do where that is known.
fn explained(error: CopyError) -> anyhow::Error {
    let hint = match &error {
        CopyError::Taken { .. } => "; --force replaces it",
        _ => "",
    };
    anyhow::anyhow!("{}{hint}", wharf_kit::chain(&error))
}
