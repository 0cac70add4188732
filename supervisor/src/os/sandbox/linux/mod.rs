//! Linux's walls, each of which holds without the others as far as it can:
//!
//! | wall | what it keeps out |
//! |---|---|
//! | no new privileges, no capabilities | what a set-user-id program or root could do |
//! | Landlock (`landlock`) | files, devices, other processes' memory; of newer kernels also network and signals |
//! | system calls (`seccomp`) | sockets, processes, signals, namespaces, all that changes a file or the kernel |

mod capabilities;
mod landlock;
mod places;
mod plan;
mod seccomp;

use std::io;
use std::path::Path;

use plan::Plan;

use super::terms::{Launch, Walls};
use crate::os::process;

/// Walls this process in; what can't be is returned in words.
pub(super) fn wall_in(launch: &Launch, program: &Path) -> Vec<String> {
    let run = std::iter::once(program).chain(launch.loader.as_deref()).collect();
    let plan = Plan { landlock_abi_max: launch.landlock_abi_max, read: &launch.read, run };
    put_up(&plan).missing
}

/// What the program is then started with.
pub(super) fn command(launch: &Launch, program: &Path) -> std::process::Command {
    process::image(program, &launch.arguments)
}

/// Puts the walls up around a thread that has nothing to do and ends: what stood there stands anywhere.
pub(super) fn tried(landlock_abi_max: Option<i32>) -> Walls {
    let builder = std::thread::Builder::new().name("walls".to_owned());
    let put_up = move || put_up(&Plan { landlock_abi_max, read: &[], run: Vec::new() });
    let walls = builder.spawn(put_up).and_then(|thread| thread.join().map_err(|_| io::Error::other("it panicked")));
    walls.unwrap_or_else(|error| Walls { stand: Vec::new(), missing: vec![format!("walls of any kind ({error})")] })
}

fn put_up(plan: &Plan<'_>) -> Walls {
    let mut walls = Walls::default();
    let mut note = |wall: &str, result: io::Result<()>| match result {
        Ok(()) => walls.stand.push(wall.to_owned()),
        Err(error) => walls.missing.push(format!("{wall} ({error})")),
    };
    note("no new privileges", rustix::thread::set_no_new_privs(true).map_err(io::Error::from));
    // While all that it names can be opened.
    let landlock = landlock::restrict(plan);
    // What follows leaves a gap for this wall where it stands.
    let is_confined = landlock.is_ok();
    note("no capabilities", capabilities::drop_all(plan, is_confined));
    match landlock {
        Ok(version) => {
            walls.stand.push(format!("Landlock {version}"));
            walls.missing.extend(landlock::missing(version));
        }
        Err(error) => walls.missing.push(format!("Landlock ({error})")),
    }
    match seccomp::apply(is_confined) {
        Ok(()) => walls.stand.push("system calls".to_owned()),
        Err(error) => walls.missing.push(format!("system calls ({error})")),
    }
    walls
}
