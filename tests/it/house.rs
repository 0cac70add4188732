//! What the process tests share: a supervisor in this process with the fake worker as its backend, and what a client
//! hears.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use harness::script::Script;
use ollmlx_proto::{Failure, FailureKind, FinishReason, Finished, Output, RequestId};
use ollmlx_supervisor::driver::{self, Driver, DriverConfig, Handle, Ticket};
use ollmlx_supervisor::os::sandbox::{Launcher, Policy};
use ollmlx_supervisor::types::TicketItem;
use ollmlx_supervisor::types::{Job, LoadPlan, Snapshot, WorkerView};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct House {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) handle: Handle,
    pub(crate) driver: Driver,
}

impl House {
    pub(crate) async fn open(change: impl FnOnce(&mut DriverConfig)) -> Self {
        let folder = tempfile::Builder::new().prefix("oh").tempdir_in("/tmp").unwrap();
        harness::link_workers(folder.path(), Path::new(env!("CARGO_BIN_EXE_fake-worker")));
        let mut config = DriverConfig {
            worker_dir: Some(folder.path().to_owned()),
            launcher: Launcher::new(Policy::Off, env!("CARGO_BIN_EXE_server").into()),
            runtime_dir: Some(folder.path().to_owned()),
            ..DriverConfig::default()
        };
        config.scheduler.timeouts.ask_ms = 300;
        config.scheduler.timeouts.term_ms = 300;
        change(&mut config);
        let (handle, driver) = driver::start(config).await.unwrap();
        Self { folder, handle, driver }
    }

    pub(crate) fn plan(&self, name: &str, script: &Script) -> LoadPlan {
        let path = self.folder.path().join(name);
        script.write(&path);
        harness::plan(&harness::model(name, path), 2048, 1)
    }

    pub(crate) async fn ask(&self, plan: &LoadPlan) -> Ticket {
        self.ask_for(plan, "").await
    }

    /// With these words in the prompt.
    pub(crate) async fn ask_for(&self, plan: &LoadPlan, words: &str) -> Ticket {
        self.handle.submit(Job::Run(harness::request(0, words)), plan.clone(), None).await
    }

    pub(crate) async fn run(&self, plan: &LoadPlan) -> Answer {
        let mut ticket = self.ask(plan).await;
        Answer::of(&mut ticket).await
    }

    /// Waits for a view that is like this.
    pub(crate) async fn until(&self, mut like: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.handle.snapshots();
        let view = tokio::time::timeout(PATIENCE, snapshots.wait_for(|view| like(view))).await;
        view.expect("the view comes").unwrap().clone()
    }

    pub(crate) async fn until_worker(&self, plan: &LoadPlan, mut like: impl FnMut(&WorkerView) -> bool) -> WorkerView {
        let view = self.until(|view| view.of(&plan.model.id).is_some_and(&mut like)).await;
        view.of(&plan.model.id).unwrap().clone()
    }

    pub(crate) async fn close(self) {
        self.handle.shutdown(true).await;
        tokio::time::timeout(PATIENCE, self.driver.join()).await.expect("it ends").unwrap();
    }
}

/// What a client heard.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) granted: bool,
    pub(crate) text: String,
    pub(crate) deltas: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) finished: Option<FinishReason>,
    /// The whole of it.
    pub(crate) end: Option<Finished>,
    /// Items that say that it begins.
    pub(crate) beginnings: usize,
    pub(crate) request: RequestId,
    pub(crate) vectors: usize,
    pub(crate) failure: Option<Failure>,
    pub(crate) loaded: bool,
}

impl Answer {
    pub(crate) async fn of(ticket: &mut Ticket) -> Self {
        let mut answer = Self {
            granted: false,
            text: String::new(),
            deltas: 0,
            tokens: Vec::new(),
            finished: None,
            end: None,
            beginnings: 0,
            request: ticket.request(),
            vectors: 0,
            failure: None,
            loaded: false,
        };
        while let Some(item) = tokio::time::timeout(PATIENCE, ticket.next()).await.expect("an item comes") {
            match item {
                TicketItem::Granted { .. } => {
                    assert!(!answer.granted, "granted once");
                    answer.granted = true;
                }
                TicketItem::Output(Output::Started(_)) => answer.beginnings += 1,
                TicketItem::Output(Output::Embedded(embeddings)) => answer.vectors = embeddings.vectors.len(),
                TicketItem::Loaded => answer.loaded = true,
                TicketItem::Unloaded => panic!("a driver never says so"),
                TicketItem::Failed(failure) | TicketItem::Output(Output::Failed(failure)) => {
                    answer.failure = Some(failure);
                }
                TicketItem::Output(Output::Delta(delta)) => {
                    answer.deltas += 1;
                    answer.text.push_str(&delta.text);
                    answer.tokens.extend(delta.tokens);
                }
                TicketItem::Output(Output::Finished(finished)) => {
                    answer.finished = Some(finished.reason);
                    answer.end = Some(finished);
                }
                TicketItem::Output(_) => {}
            }
        }
        answer
    }

    pub(crate) fn kind(&self) -> FailureKind {
        self.failure.as_ref().unwrap_or_else(|| panic!("it failed: {self:?}")).kind
    }

    pub(crate) fn public(&self) -> &str {
        &self.failure.as_ref().unwrap().public
    }
}

pub(crate) async fn first_delta(ticket: &mut Ticket) {
    loop {
        match tokio::time::timeout(PATIENCE, ticket.next()).await.expect("an item comes") {
            Some(TicketItem::Output(Output::Delta(_))) => return,
            Some(TicketItem::Failed(failure)) => panic!("{failure}"),
            Some(_) => {}
            None => panic!("it ended"),
        }
    }
}

pub(crate) fn endless() -> Script {
    Script { tokens: 0, interval_ms: 5, ..Script::default() }
}
