//! Measures how many events the driver takes in a second while it knows a hundred models: in a flood, and one by one, each
//! followed by a reader's look at the snapshot. By hand: `cargo run --release -p ollmlx-tests --bin driver-events`.
//!
//! The models' processes sleep and never say hello, so nothing but the driver takes time.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "whoever started it reads it")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Instant;

use ollmlx_supervisor::driver::{self, DriverConfig, Handle};
use ollmlx_supervisor::types::Job;

const MODELS: usize = 100;
const EVENTS: u32 = 20_000;
/// Longer than all of it.
const HELLO_TIMEOUT_MS: u64 = 600_000;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let folder = tempfile::tempdir().expect("a writable temporary folder");
    let program = folder.path().join("ollmlx-worker-gguf");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 600\n").expect("a writable temporary folder");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("our own file");
    let mut config = DriverConfig {
        worker_dir: Some(folder.path().to_owned()),
        launcher: harness::launcher_beside(),
        runtime_dir: Some(folder.path().to_owned()),
        ..DriverConfig::default()
    };
    config.scheduler.workers_max = MODELS;
    // With a limit, what is held elsewhere counts and can be seen.
    config.scheduler.memory_limit = Some(1 << 40);
    config.scheduler.timeouts.hello_ms = HELLO_TIMEOUT_MS;
    let (handle, driver) = driver::start(config).await.expect("a driver");
    let mut tickets = Vec::new();
    for number in 0..MODELS {
        let model = harness::model(&format!("m{number}"), PathBuf::from("/nowhere"));
        tickets.push(handle.submit(Job::Load, harness::plan(&model, 2048, 1 << 20), None).await);
    }
    handle.ping().await;
    assert_eq!(handle.snapshot().workers.len(), MODELS, "all are known");
    told("flood", flood(&handle).await);
    told("one by one", one_by_one(&handle).await);
    drop(tickets);
    handle.shutdown(true).await;
    driver.join().await.expect("it ends");
}

fn told(what: &str, seconds: f64) {
    println!(
        "{what}: {:.0} events per second, {:.2} us each",
        f64::from(EVENTS) / seconds,
        seconds * 1e6 / f64::from(EVENTS)
    );
}

async fn flood(handle: &Handle) -> f64 {
    let begun = Instant::now();
    for bytes in 0..EVENTS {
        handle.elsewhere_held(u64::from(bytes)).await;
    }
    handle.ping().await;
    begun.elapsed().as_secs_f64()
}

/// Waits until each event can be seen.
async fn one_by_one(handle: &Handle) -> f64 {
    let mut snapshots = handle.snapshots();
    let begun = Instant::now();
    for bytes in 1..=EVENTS {
        handle.elsewhere_held(u64::from(bytes)).await;
        let seen = snapshots.wait_for(|snapshot| snapshot.elsewhere_bytes == u64::from(bytes)).await;
        drop(seen.expect("the driver runs"));
        let _read = handle.snapshot();
    }
    begun.elapsed().as_secs_f64()
}
