//! Strikes a random worker at fixed intervals, with a signal of a seeded choice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::ward::Ward;
use crate::lines::get;

/// All signals of a run.
pub(crate) const SIGNALS: [Signal; 5] =
    [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGTERM, Signal::SIGABRT, Signal::SIGSEGV];
/// Rust's own handler gives SIGSEGV back to the system the first time, so that a second one is needed.
const TWICE_AFTER: Duration = Duration::from_millis(20);

/// SplitMix64: the run can be repeated with its seed.
#[derive(Debug)]
pub(crate) struct Luck(pub(crate) u64);

impl Luck {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        usize::try_from(bits % end as u64).unwrap_or_default()
    }
}

/// The killer's tools.
#[derive(Debug)]
pub(crate) struct Killer {
    pub(crate) address: SocketAddr,
    pub(crate) models: Vec<String>,
    pub(crate) wards: Vec<Arc<Ward>>,
    pub(crate) luck: Luck,
    pub(crate) every: Duration,
}

/// Strikes by signal.
pub(crate) type Strikes = BTreeMap<&'static str, u64>;

impl Killer {
    /// Goes on until `until`.
    pub(crate) async fn run(mut self, until: Instant) -> Result<Strikes> {
        let mut strikes = Strikes::new();
        let mut ticks = tokio::time::interval(self.every);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if Instant::now() >= until {
                return Ok(strikes);
            }
            if let Some(signal) = self.strike().await? {
                *strikes.entry(signal.as_str()).or_default() += 1;
            }
        }
    }

    /// Nothing where no worker lives at the moment.
    async fn strike(&mut self) -> Result<Option<Signal>> {
        let answer: Value = serde_json::from_str(&get(self.address, "/api/ps").await?).context("/api/ps")?;
        let rows = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
        let victims: Vec<(usize, i32, &str)> = rows
            .iter()
            .filter_map(|row| {
                let model = self.models.iter().position(|name| row["name"] == **name)?;
                Some((model, i32::try_from(row["pid"].as_i64()?).ok()?, row["state"].as_str()?))
            })
            .collect();
        // Drawn whether or not there is a victim, so that the sequence is the seed's.
        let (who, what) = (self.luck.below(2 * 3 * 5 * 7), self.luck.below(SIGNALS.len()));
        let Some(&(model, pid, state)) = victims.get(who % victims.len().max(1)) else { return Ok(None) };
        let ward = &self.wards[model];
        let mut signal = SIGNALS[what];
        let is_crash = matches!(signal, Signal::SIGABRT | Signal::SIGSEGV);
        if is_crash && !(state == "busy" && ward.is_calm()) {
            signal = Signal::SIGKILL;
        }
        ward.strike(Instant::now());
        // It may have died a moment ago.
        let struck = kill(Pid::from_raw(pid), signal).is_ok();
        if struck && signal == Signal::SIGSEGV {
            tokio::time::sleep(TWICE_AFTER).await;
            let _gone = kill(Pid::from_raw(pid), signal);
        }
        Ok(struck.then_some(signal))
    }
}
