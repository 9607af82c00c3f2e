//! Ranks on two hosts, simulated by two connected network namespaces with their own host names. A real mpirun starts
//! ranks on both; a replacement for ssh enters the other namespace.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, assert_same_result, finish, output_text, signal, wait};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const ADDRESSES: [&str; 2] = ["10.77.83.1", "10.77.83.2"];
const LIMIT: Duration = Duration::from_secs(200);

/// Two hosts, node1 and node2, removed when dropped.
struct Hosts {
    names: [String; 2],
    link: [String; 2],
}

impl Hosts {
    /// `None`, with the reason printed, if they cannot be created.
    fn create(number: usize) -> Option<Hosts> {
        let name = |side: &str| format!("d{}-{number}{side}", std::process::id());
        let hosts = Hosts { names: ["a", "b"].map(name), link: ["x", "y"].map(name) };
        if let Err(why) = hosts.connect() {
            println!("skipped: hosts in network namespaces need root and iproute2: {why}");
            return None;
        }
        Some(hosts)
    }

    fn connect(&self) -> Result<(), String> {
        let ([a, b], [x, y]) = (&self.names, &self.link);
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["link", "add", x, "netns", a, "type", "veth", "peer", "name", y, "netns", b])?;
        for (side, (name, link)) in [(a, x), (b, y)].into_iter().enumerate() {
            ip(&["-n", name, "addr", "add", &format!("{}/24", ADDRESSES[side]), "dev", link])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", link, "up"])?;
        }
        Ok(())
    }

    fn take_link_down(&self) {
        ip(&["-n", &self.names[1], "link", "set", &self.link[1], "down"]).unwrap();
    }

    /// `program` on node1, with a replacement for ssh that reaches node2.
    fn on_node1(&self, program: impl AsRef<Path>) -> Command {
        let bench = Bench::get();
        let agent = bench.path(&format!("ssh-{}", self.names[0]));
        let enter = "exec unshare --uts sh -c \"hostname node2; $*\"";
        std::fs::write(
            &agent,
            format!("#!/bin/sh\nshift\nexec ip netns exec {} sh -c '{enter}' sh \"$@\"\n", self.names[1]),
        )
        .unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&agent).status().unwrap().success());
        let mut command = bench.command("ip");
        command.args(["netns", "exec", &self.names[0], "unshare", "--uts", "sh", "-c"]);
        command.args(["hostname node1; exec \"$0\" \"$@\""]).arg(program.as_ref());
        command
            .env("PRTE_MCA_plm_ssh_agent", agent)
            .env("PRTE_MCA_prte_if_include", "10.77.83.0/24")
            .env("OMPI_MCA_btl_tcp_if_include", "10.77.83.0/24");
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // Processes that mpirun could not reach after the link went down.
            let left = Command::new("ip").args(["netns", "pids", name]).output();
            let pids =
                left.map(|left| String::from_utf8_lossy(&left.stdout).into_owned()).unwrap_or_default();
            pids.lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| signal(pid, "KILL"));
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(output_text(&output)) }
}

/// Both hosts with one slot each.
fn both_hosts() -> String {
    ADDRESSES.map(|address| format!("{address}:1")).join(",")
}

#[test]
fn two_hosts_give_the_result_of_one_host() {
    let Some(hosts) = Hosts::create(1) else { return };
    let bench = Bench::get();
    let plain = bench.search(2, "two-hosts", &[]);
    let mut command = hosts.on_node1(plain.get_program());
    command.args(["--host", &both_hosts()]).args(plain.get_args());
    let output = finish(command, LIMIT);
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("2 ranks on 2 hosts"), "{}", output_text(&output));
    assert_same_result(&bench.run("two-hosts"), &bench.run_search(0, "one-host", &[]));
}

/// The network fails: both sides report the lost rank, and the search resumes on the remaining host, with the same
/// result.
#[test]
fn lost_host_is_reported_and_the_run_resumes_without_it() {
    let Some(hosts) = Hosts::create(2) else { return };
    let bench = Bench::get();
    let run = bench.run("cut");
    // A replacement for `ssh HOST true`, since no SSH server runs on the hosts.
    let alive = format!("#!/bin/sh\n[ \"$1\" = {} ] || [ ! -e cut-now ]\n", ADDRESSES[0]);
    std::fs::write(bench.path("alive.sh"), alive).unwrap();
    let mut command = hosts.on_node1(Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/supervise.sh"));
    let plain = bench.search(0, "cut", &["--set", "run.checkpoint_every=2", "--set", "run.heartbeat_s=3"]);
    command.arg("cut").arg(plain.get_program()).args(plain.get_args());
    let mpirun = format!("{} --bind-to none", bench.mpirun().get_program().to_str().unwrap());
    command.env("MPIRUN", mpirun).env("HOSTS", both_hosts()).env("ALIVE", "sh alive.sh");
    command.env("PAUSE_S", "0").env("LINGER_S", "3");
    // A file, since processes that mpirun cannot reach would keep a pipe open.
    let log = std::fs::File::create(bench.path("cut.log")).unwrap();
    let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let started = Instant::now();
    while run.checkpoints().is_empty() {
        assert!(started.elapsed() < LIMIT, "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(bench.path("cut-now"), "").unwrap();
    hosts.take_link_down();
    let cut = Instant::now();
    let output = wait(child, LIMIT);
    println!("finished {:.0} s after the link went down", cut.elapsed().as_secs_f64());
    let printed = std::fs::read_to_string(bench.path("cut.log")).unwrap();
    assert!(output.status.success(), "{printed}");
    let messages = std::fs::read_to_string(run.folder.join("messages.log")).unwrap();
    for line in
        ["rank 0 on node1: lost rank 1 on node2, step ", "rank 1 on node2: lost rank 0 on node1, step "]
    {
        let line = messages.lines().find(|text| text.contains(line)).unwrap_or_else(|| panic!("{messages}"));
        assert!(line.contains("no heartbeat for 3 s (stopped, or its machine or network is down)"), "{line}");
    }
    for line in
        ["starting 2 ranks on 10.77.83.1:1,10.77.83.2:1, from step 0", "starting 1 rank on 10.77.83.1:1"]
    {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert_same_result(&run, &bench.run_search(0, "uncut", &["--set", "run.checkpoint_every=2"]));
}
