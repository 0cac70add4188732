//! The files for service managers in `supervisor/service/`, held against the limits of the code: whoever changes one of
//! these is told of the other.

use std::path::Path;

use ollmlx_supervisor::cli::error::EXIT_SETTINGS;
use ollmlx_supervisor::limits::{CONNECTIONS_MAX, LEAVE_MS_MAX, WATCHDOG_MISSED_MAX, WATCHDOG_TICK_MS};

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../supervisor/service").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The only line of this name in the unit, which has to stand in this section.
fn unit_value(section: &str, name: &str) -> String {
    let text = file("ollmlx.service");
    let mut found = Vec::new();
    let mut here = "";
    for line in text.lines() {
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            here = title;
        } else if let Some((key, value)) = line.split_once('=')
            && key == name
        {
            assert_eq!(here, section, "{name}");
            found.push(value.to_owned());
        }
    }
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found.remove(0)
}

fn unit_seconds(section: &str, name: &str) -> u64 {
    unit_value(section, name).parse().unwrap_or_else(|_| panic!("{name} in seconds"))
}

/// What follows this key in the property list: the first element behind it.
fn plist_value(key: &str) -> String {
    let text = file("io.ollmlx.serve.plist");
    let (_, rest) = text.split_once(&format!("<key>{key}</key>")).unwrap_or_else(|| panic!("no {key}"));
    rest.trim_start().split_inclusive('>').take(2).collect::<String>().trim().to_owned()
}

fn plist_number(key: &str) -> u64 {
    let value = plist_value(key);
    let number = value.strip_prefix("<integer>").and_then(|rest| rest.strip_suffix("</integer>"));
    number.unwrap_or_else(|| panic!("{key}: {value}")).parse().unwrap()
}

#[test]
fn row_38_systemd_waits_for_the_server_s_own_end() {
    assert!(unit_seconds("Service", "TimeoutStopSec") * 1000 > LEAVE_MS_MAX);
    let own_end_ms = u64::from(WATCHDOG_MISSED_MAX) * WATCHDOG_TICK_MS;
    assert!(unit_seconds("Service", "WatchdogSec") * 1000 > own_end_ms, "so that the server says why it ends");
    // Each worker would get the signal as well, in the middle of its answers.
    assert_eq!(unit_value("Service", "KillMode"), "mixed");
}

#[test]
fn row_38_systemd_does_not_start_it_for_ever() {
    assert_eq!(unit_value("Service", "RestartPreventExitStatus"), EXIT_SETTINGS.to_string());
    assert_eq!(unit_value("Service", "Restart"), "on-failure");
    let [interval, burst] = ["StartLimitIntervalSec", "StartLimitBurst"].map(|name| unit_seconds("Unit", name));
    let pause = unit_seconds("Service", "RestartSec");
    assert!(pause > 0 && burst > 1);
    assert!(burst * pause < interval / 2, "slower than the limit it would never be reached");
}

#[test]
fn row_38_systemd_follows_an_upgrade() {
    assert_eq!(unit_value("Service", "Type"), "notify");
    assert_eq!(unit_value("Service", "NotifyAccess"), "all");
    assert!(unit_value("Service", "ExecReload").ends_with("kill -USR2 $MAINPID"));
    assert!(unit_value("Service", "ExecStart").ends_with("/ollmlx serve"));
    assert_eq!(unit_value("Service", "Delegate"), "yes");
}

#[test]
fn row_38_the_unit_of_one_user_is_a_part_of_the_machine_s() {
    let settings = |name: &str| -> Vec<String> {
        let text = file(name);
        let lines = text.lines().take_while(|line| *line != "[Install]");
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    };
    let (machine, user) = (settings("ollmlx.service"), settings("user/ollmlx.service"));
    let only_user: Vec<_> = user.iter().filter(|line| !machine.contains(line)).collect();
    assert!(only_user.is_empty(), "{only_user:?}");
    // Those of a user's own manager fail or do nothing without the rights of root.
    let only_machine: Vec<_> = machine.iter().filter(|line| !user.contains(line)).collect();
    assert!(only_machine.iter().any(|line| *line == "ProtectSystem=strict"), "{only_machine:?}");
    for name in ["ExecStart", "Delegate", "WatchdogSec", "NoNewPrivileges", "SystemCallFilter", "UMask"] {
        assert!(user.iter().any(|line| line.starts_with(&format!("{name}="))), "{name}");
    }
}

#[test]
fn row_38_launchd_starts_it_seldom_and_waits_for_its_end() {
    assert!(plist_number("ExitTimeOut") * 1000 > LEAVE_MS_MAX);
    assert!(plist_number("ThrottleInterval") >= 10, "launchd's own default");
    let keep_alive = file("io.ollmlx.serve.plist");
    let (_, keep_alive) = keep_alive.split_once("<key>KeepAlive</key>").unwrap();
    assert!(keep_alive.trim_start().starts_with("<dict>"), "not for ever");
    assert_eq!(plist_value("SuccessfulExit"), "<false/>\n\t</dict>");
    assert!(plist_number("NumberOfFiles") <= CONNECTIONS_MAX as u64, "the rest the server asks for itself");
    let told = file("io.ollmlx.serve.plist").contains(&format!("status {EXIT_SETTINGS}"));
    assert!(told, "that launchd does not know the status");
}
