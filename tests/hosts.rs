//! Ranks on two hosts: network namespaces of this machine, with names of their own and a cable between them. A real mpirun
//! starts ranks on both; what stands in for ssh enters the other one.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, assert_same_end, finish, said, signal, wait};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const ADDRESSES: [&str; 2] = ["10.77.83.1", "10.77.83.2"];
const LIMIT: Duration = Duration::from_secs(200);

/// Two hosts, node1 and node2; gone with this.
struct Hosts {
    names: [String; 2],
    cable: [String; 2],
}

impl Hosts {
    /// None, and why, where one may not make them.
    fn make(number: usize) -> Option<Hosts> {
        let name = |side: &str| format!("d{}-{number}{side}", std::process::id());
        let hosts = Hosts { names: ["a", "b"].map(name), cable: ["x", "y"].map(name) };
        if let Err(why) = hosts.connect() {
            println!("skipped: hosts in network namespaces need root and iproute2: {why}");
            return None;
        }
        Some(hosts)
    }

    fn connect(&self) -> Result<(), String> {
        let ([a, b], [x, y]) = (&self.names, &self.cable);
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["link", "add", x, "netns", a, "type", "veth", "peer", "name", y, "netns", b])?;
        for (side, (name, cable)) in [(a, x), (b, y)].into_iter().enumerate() {
            ip(&["-n", name, "addr", "add", &format!("{}/24", ADDRESSES[side]), "dev", cable])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", cable, "up"])?;
        }
        Ok(())
    }

    fn cut_the_cable(&self) {
        ip(&["-n", &self.names[1], "link", "set", &self.cable[1], "down"]).unwrap();
    }

    /// `program` on node1, with `ssh` as its way to node2.
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
        let mut command = bench.at_home("ip");
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
            // What mpirun has left behind the cut.
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
    if output.status.success() { Ok(()) } else { Err(said(&output)) }
}

/// One slot on each host.
fn both() -> String {
    ADDRESSES.map(|address| format!("{address}:1")).join(",")
}

#[test]
fn two_hosts_compute_what_one_does() {
    let Some(hosts) = Hosts::make(1) else { return };
    let bench = Bench::get();
    let plain = bench.search(2, "two-hosts", &[]);
    let mut command = hosts.on_node1(plain.get_program());
    command.args(["--host", &both()]).args(plain.get_args());
    let output = finish(command, LIMIT);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("2 ranks on 2 hosts"), "{}", said(&output));
    assert_same_end(&bench.run("two-hosts"), &bench.searched(0, "one-host", &[]));
}

/// The network goes: both sides say whom they have lost, the search goes on with what is left, and ends as if nothing had
/// been.
#[test]
fn a_lost_host_is_named_and_the_run_goes_on_without_it() {
    let Some(hosts) = Hosts::make(2) else { return };
    let bench = Bench::get();
    let run = bench.run("cut");
    // A stand-in of `ssh HOST true`: the hosts are no more than their addresses.
    let alive = format!("#!/bin/sh\n[ \"$1\" = {} ] || [ ! -e cut-now ]\n", ADDRESSES[0]);
    std::fs::write(bench.path("alive.sh"), alive).unwrap();
    let mut command = hosts.on_node1(Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/supervise.sh"));
    let plain = bench.search(0, "cut", &["--set", "run.checkpoint_every=2", "--set", "run.heartbeat_s=3"]);
    command.arg("cut").arg(plain.get_program()).args(plain.get_args());
    let mpirun = format!("{} --bind-to none", bench.mpirun().get_program().to_str().unwrap());
    command.env("MPIRUN", mpirun).env("HOSTS", both()).env("ALIVE", "sh alive.sh");
    command.env("PAUSE_S", "0").env("LINGER_S", "3");
    // A file: what mpirun leaves behind the cut would hold a pipe open.
    let log = std::fs::File::create(bench.path("cut.log")).unwrap();
    let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let started = Instant::now();
    while run.checkpoints().is_empty() {
        assert!(started.elapsed() < LIMIT, "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(bench.path("cut-now"), "").unwrap();
    hosts.cut_the_cable();
    let cut = Instant::now();
    let output = wait(child, LIMIT);
    println!("{:.0} s after the cut", cut.elapsed().as_secs_f64());
    let said = std::fs::read_to_string(bench.path("cut.log")).unwrap();
    assert!(output.status.success(), "{said}");
    let messages = std::fs::read_to_string(run.folder.join("messages.log")).unwrap();
    for line in
        ["rank 0 on node1: lost rank 1 on node2, step ", "rank 1 on node2: lost rank 0 on node1, step "]
    {
        let line = messages.lines().find(|text| text.contains(line)).unwrap_or_else(|| panic!("{messages}"));
        assert!(
            line.contains("no sign of life for 3 s (stopped, or its machine or network is down)"),
            "{line}"
        );
    }
    for line in
        ["start with 2 ranks on 10.77.83.1:1,10.77.83.2:1, from step 0", "start with 1 ranks on 10.77.83.1:1"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_same_end(&run, &bench.searched(0, "uncut", &["--set", "run.checkpoint_every=2"]));
}
