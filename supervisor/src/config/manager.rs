//! What the service manager that started us says in the environment: systemd's sd_notify(3) and sd_watchdog_enabled(3).

use std::time::Duration;

use super::raw::Sources;

/// The service manager, as far as it wants to hear of us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manager {
    /// Where it listens (`NOTIFY_SOCKET`).
    pub notify_socket: Option<String>,
    /// It ends a service that gives no sign of life within this (`WATCHDOG_USEC`).
    ///
    /// Whose process that is about (`WATCHDOG_PID`) is not asked: after an upgrade it is another one.
    pub watchdog: Option<Duration>,
}

impl Manager {
    pub(super) fn read(sources: &Sources) -> Self {
        let text = |name: &str| sources.env.get(name).filter(|text| !text.is_empty());
        let microseconds = text("WATCHDOG_USEC").and_then(|text| text.parse::<u64>().ok()).filter(|count| *count > 0);
        Self { notify_socket: text("NOTIFY_SOCKET").cloned(), watchdog: microseconds.map(Duration::from_micros) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(&str, &str)]) -> Manager {
        let env = list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Manager::read(&Sources { env, ..Sources::default() })
    }

    #[test]
    fn a_manager_is_there_where_it_says_so() {
        assert_eq!(of(&[]), Manager::default());
        let told = of(&[("NOTIFY_SOCKET", "@here"), ("WATCHDOG_USEC", "2500000"), ("WATCHDOG_PID", "1")]);
        let expected = Manager { notify_socket: Some("@here".into()), watchdog: Some(Duration::from_millis(2500)) };
        assert_eq!(told, expected);
        for odd in ["", "0", "-1", "soon"] {
            assert_eq!(of(&[("NOTIFY_SOCKET", ""), ("WATCHDOG_USEC", odd)]), Manager::default());
        }
    }
}
