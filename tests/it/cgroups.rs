//! Control groups for workers, on a pretend tree: what the server does to its own group, what it leaves alone, what it
//! tells of a worker that the kernel ended. The pretend tree knows the kernel's rules; no real group is touched.

use std::path::Path;
use std::sync::Arc;

use harness::cgroups::FakeTree;
use harness::script::{Misfortune, Script};
use ollmlx_supervisor::limits;
use ollmlx_supervisor::os::worker_cgroup::CgroupParent;
use ollmlx_supervisor::types::{Cause, Fate, LoadPlan};

use crate::house::{Answer, House, endless, first_delta};

/// More than any process id that the system gives.
const NOBODY: u32 = 0x7fff_ff00;
const OWN: u32 = NOBODY + 1;

fn cgroup_parent(tree: &Arc<FakeTree>, own: &Path) -> std::io::Result<CgroupParent> {
    let tree: Arc<FakeTree> = Arc::clone(tree);
    CgroupParent::open_in(tree, own, OWN, |pid| pid == 1)
}

#[test]
fn the_server_moves_into_a_leaf_and_workers_get_groups_beside_it() {
    let root = tempfile::tempdir().unwrap();
    let tree = Arc::new(FakeTree::new(root.path(), "cpu memory", &[OWN]));
    let parent = cgroup_parent(&tree, root.path()).unwrap();
    assert!(tree.processes(root.path()).is_empty());
    assert_eq!(tree.processes(&root.path().join("ollmlx-server")), [OWN]);
    let cgroup = parent.cgroup(3, NOBODY, 5_000_000).unwrap();
    let folder = root.path().join(format!("ollmlx-worker-{OWN}-3"));
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    assert_eq!(
        (read("memory.max"), read("memory.oom.group"), tree.processes(&folder)),
        ("5000000".into(), "1".into(), vec![NOBODY])
    );
    std::fs::write(folder.join("memory.current"), "1000\n").unwrap();
    std::fs::write(folder.join("memory.stat"), "anon 300\nfile 600\nfile_mapped 250\nshmem 10\n").unwrap();
    assert_eq!(cgroup.measured(), Some(650), "cached files that nobody maps are nobody's");
    cgroup.limit(6_000_000).unwrap();
    assert_eq!(read("memory.max"), "6000000");
    drop(cgroup);
    assert!(!folder.exists());
}

#[test]
fn a_successor_finds_itself_in_the_leaf() {
    let root = tempfile::tempdir().unwrap();
    let tree = Arc::new(FakeTree::new(root.path(), "memory", &[OWN]));
    cgroup_parent(&tree, root.path()).unwrap();
    let again = cgroup_parent(&tree, &root.path().join("ollmlx-server")).unwrap();
    assert_eq!(again.folder(), root.path());
}

#[test]
fn a_group_that_is_not_handed_over_is_left_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let tree = Arc::new(FakeTree::new(root.path(), "cpu hugetlb", &[OWN]));
    assert!(cgroup_parent(&tree, root.path()).unwrap_err().to_string().contains("memory controller"));
    assert_eq!(tree.processes(root.path()), [OWN]);
    // A shell in the same session can't be moved.
    let root = tempfile::tempdir().unwrap();
    let tree = Arc::new(FakeTree::new(root.path(), "memory", &[1, OWN]));
    assert!(cgroup_parent(&tree, root.path()).is_err());
    assert_eq!(tree.processes(root.path()), [1, OWN]);
    assert!(!root.path().join("ollmlx-server").exists());
}

#[test]
fn what_servers_that_are_gone_left_is_removed_and_what_others_have_stays() {
    let root = tempfile::tempdir().unwrap();
    let tree = Arc::new(FakeTree::new(root.path(), "memory", &[OWN]));
    let left = format!("ollmlx-worker-{NOBODY}-1");
    let names = [left.as_str(), "ollmlx-worker-1-1", "ollmlx-worker-x", "something"];
    for name in names {
        ollmlx_supervisor::os::worker_cgroup::CgroupTree::make(&*tree, &root.path().join(name)).unwrap();
    }
    std::fs::write(root.path().join(&left).join("cgroup.procs"), "1\n").unwrap();
    cgroup_parent(&tree, root.path()).unwrap();
    assert_eq!(names.map(|name| root.path().join(name).exists()), [false, true, true, true]);
}

/// A house whose workers get pretend groups.
async fn in_cgroups(root: &Path, events: &str) -> (House, Arc<FakeTree>) {
    let tree = Arc::new(FakeTree::new(root, "memory", &[]));
    let parent = cgroup_parent(&tree, root).unwrap();
    *tree.events.lock().unwrap() = events.to_owned();
    let house = House::open(|config| {
        config.scheduler.memory_limit = Some(8 << 30);
        config.cgroup_parent = Some(parent);
    })
    .await;
    (house, tree)
}

#[tokio::test]
async fn each_worker_lives_in_a_group_with_its_budget_and_the_group_goes_with_it() {
    let root = tempfile::tempdir().unwrap();
    let (house, tree) = in_cgroups(root.path(), "oom_kill 0\n").await;
    let plan = house.plan("in_cgroups", &endless());
    // More than the fake worker takes.
    let plan = LoadPlan { memory: harness::plan(&plan.model, 1, 100 << 20).memory, ..plan };
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    let pid = house.until_worker(&plan, |worker| worker.state == "busy").await.pid.unwrap();
    let folder = tree.made.lock().unwrap().last().unwrap().clone();
    assert_eq!(tree.processes(&folder), [pid]);
    let limit: u64 = std::fs::read_to_string(folder.join("memory.max")).unwrap().parse().unwrap();
    assert_eq!(limit, plan.memory.total() + limits::CGROUP_HEADROOM_BYTES_MIN);
    drop(ticket);
    house.handle.unload(plan.model.id.clone()).await;
    house.until(|view| view.workers.is_empty()).await;
    house.close().await;
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_model_s_own_limit_is_that_of_its_group_as_well() {
    let root = tempfile::tempdir().unwrap();
    let (house, tree) = in_cgroups(root.path(), "oom_kill 0\n").await;
    let mut plan = house.plan("tight", &endless());
    plan.memory = harness::plan(&plan.model, 1, 100 << 20).memory;
    plan.terms.limit = Some(200_000_000);
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    let folder = tree.made.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        std::fs::read_to_string(folder.join("memory.max")).unwrap(),
        "220000000",
        "the mark at which it is killed"
    );
    drop(ticket);
    house.close().await;
}

#[tokio::test]
async fn a_kernel_that_takes_its_time_keeps_nobody_waiting_but_the_worker_that_moves() {
    let root = tempfile::tempdir().unwrap();
    let (house, tree) = in_cgroups(root.path(), "oom_kill 0\n").await;
    let calm = house.plan("calm", &Script { tokens: 0, interval_ms: 1, ..Script::default() });
    let mut running = house.ask(&calm).await;
    first_delta(&mut running).await;
    *tree.is_busy.lock().unwrap() = true;
    let plan = house.plan("moves", &Script::default());
    let mut ticket = house.ask(&plan).await;
    house.until_worker(&plan, |worker| worker.state == "loading").await;
    // Many times what a load of the fake worker takes.
    for _ in 0..200 {
        first_delta(&mut running).await;
    }
    assert_eq!(house.handle.snapshot().of(&plan.model.id).unwrap().state, "loading", "it is not told to load yet");
    *tree.is_busy.lock().unwrap() = false;
    tree.calm.notify_all();
    assert_eq!(Answer::of(&mut ticket).await.text, "01234");
    house.close().await;
    assert!(!tree.made.lock().unwrap().iter().any(|folder| folder.exists()), "they go with their processes");
}

#[tokio::test]
async fn a_worker_that_the_kernel_ends_for_its_memory_is_told_apart_and_its_clients_go_on() {
    for (events, cause) in
        [("low 0\noom 1\noom_kill 1\n", Cause::OutOfMemory), ("oom_kill 0\n", Cause::Signalled { signal: 9 })]
    {
        let root = tempfile::tempdir().unwrap();
        let (house, _tree) = in_cgroups(root.path(), events).await;
        let script = Script { misfortune: Some((2, Misfortune::Kill)), unlucky_until: 1, ..Script::default() };
        let plan = house.plan("balloon", &script);
        assert_eq!(house.run(&plan).await.text, "01234");
        let deaths = house.handle.snapshot().deaths_of(&plan.model.id).unwrap().deaths.clone();
        assert_eq!((&deaths[0].cause, deaths[0].requests[0].fate), (&cause, Fate::Resumed));
        house.close().await;
    }
}
