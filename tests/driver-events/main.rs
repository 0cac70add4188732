//! Measures how many events the driver takes in a second while it knows a hundred models: in a flood, and one by one, each
//! followed by a reader's look at the snapshot. By hand: `cargo run --release -p ollmlx-tests --bin driver-events`.
//!
//! The models rest after a start that failed, since there is no worker program; so nothing but the driver takes time.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "whoever started it reads it")]

use std::path::PathBuf;
use std::time::Instant;

use ollmlx_supervisor::driver::{self, DriverConfig, Handle};
use ollmlx_supervisor::types::Job;

const MODELS: usize = 100;
const EVENTS: u32 = 20_000;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let folder = tempfile::tempdir().expect("a writable temporary folder");
    let config = DriverConfig {
        worker_dir: Some(folder.path().to_owned()),
        runtime_dir: Some(folder.path().to_owned()),
        ..DriverConfig::default()
    };
    let (handle, driver) = driver::start(config).await.expect("a driver");
    for number in 0..MODELS {
        let model = harness::model(&format!("m{number}"), PathBuf::from("/nowhere"));
        let mut ticket = handle.submit(Job::Load, harness::plan(&model, 2048, 1 << 20), None).await;
        while ticket.next().await.is_some() {}
    }
    handle.ping().await;
    println!("models known: {}", handle.snapshot().workers.len());
    told("flood", flood(&handle).await);
    told("one by one", one_by_one(&handle).await);
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
