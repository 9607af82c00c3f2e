//! A private Slurm cluster: a controller and two nodes on this machine, in a temporary folder; shut down when dropped.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The daemons and the folder that holds their state.
pub struct Cluster {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
    /// Number of fake GPUs per node.
    pub gpus: u32,
}

const CONFIGURATION: &str = "
ClusterName=test
SlurmctldHost=HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmctldPort=PORT0
SlurmctldPidFile=DIR/slurmctld.pid
SlurmctldLogFile=DIR/slurmctld.log
StateSaveLocation=DIR/state
SlurmdPidFile=DIR/slurmd.%n.pid
SlurmdLogFile=DIR/slurmd.%n.log
SlurmdSpoolDir=DIR/spool.%n
TmpFS=DIR/tmp.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=DIR/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=30
SwitchType=switch/none
NodeName=node1 NodeHostname=HOST NodeAddr=127.0.0.1 Port=PORT1 CPUs=8 RealMemory=1000 GPUS
NodeName=node2 NodeHostname=HOST NodeAddr=127.0.0.1 Port=PORT2 CPUs=8 RealMemory=1000 GPUS
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=test Nodes=node1,node2 Default=YES MaxTime=00:30:00 DefaultTime=00:05:00 PriorityTier=1 GraceTime=2
PartitionName=urgent Nodes=node1,node2 MaxTime=00:30:00 DefaultTime=00:05:00 PriorityTier=2
";

impl Cluster {
    /// Starts the daemons and waits for both nodes. Errors: the reason why Slurm cannot run on this machine.
    pub fn start() -> Result<Cluster, String> {
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Err("not root".into());
        }
        for program in ["slurmctld", "slurmd", "sbatch"] {
            let path = std::env::var_os("PATH").unwrap_or_default();
            if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
                return Err(format!(
                    "{program} not found (apt-get install --no-install-recommends slurm-wlm libpmix-dev)"
                ));
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        for name in ["state", "spool.node1", "spool.node2", "tmp.node1", "tmp.node2"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        let gpus = fake_gpus(dir);
        let mut text = CONFIGURATION.replace("DIR", dir.to_str().unwrap()).replace("HOST", &host());
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        for (number, listener) in listeners.iter().enumerate() {
            let port = listener.local_addr().unwrap().port().to_string();
            text = text.replace(&format!("PORT{number}"), &port);
        }
        drop(listeners);
        text = match gpus {
            0 => text.replace("GPUS", ""),
            _ => format!("GresTypes=gpu\n{}", text.replace("GPUS", &format!("Gres=gpu:{gpus}"))),
        };
        std::fs::write(dir.join("slurm.conf"), text).unwrap();
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            std::fs::write(dir.join("cgroup.conf"), "CgroupPlugin=cgroup/v1\n").unwrap();
        }
        let mut cluster = Cluster { folder, daemons: Vec::new(), gpus };
        let conf = cluster.path("slurm.conf");
        for words in [
            &["slurmctld", "-D", "-c"][..],
            &["slurmd", "-D", "-N", "node1"],
            &["slurmd", "-D", "-N", "node2"],
        ] {
            let mut daemon = cluster.command(words[0]);
            daemon.args(&words[1..]).arg("-f").arg(&conf).stdout(Stdio::null()).stderr(Stdio::null());
            cluster.daemons.push(daemon.spawn().unwrap());
        }
        let start = Instant::now();
        let idle = ["-h", "-N", "-p", "test", "-t", "idle", "-o", "%N"];
        while cluster.stdout_of("sinfo", &idle).lines().count() != 2 {
            if start.elapsed() > Duration::from_secs(60) {
                let log = |name| std::fs::read_to_string(cluster.path(name)).unwrap_or_default();
                panic!("the nodes did not come up:\n{}\n{}", log("slurmctld.log"), log("slurmd.node1.log"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(cluster)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `program`, configured to use this cluster.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.path("slurm.conf")).stdin(Stdio::null());
        command
    }

    /// Runs `program` and returns its standard output.
    pub fn stdout_of(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Submits `job`, a script of the checkout with arguments, as a user would, and returns the job id. `options` are for
    /// sbatch, `settings` are the script's variables.
    pub fn submit(&self, options: &[&str], settings: &BTreeMap<&str, String>, job: &[&str]) -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_drnas-dist"));
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = std::env::var("PATH").unwrap_or_default();
        let output = (self.command("sbatch").current_dir(checkout).args(["--parsable"]).args(options))
            .args(job)
            .envs(settings)
            // launch/env.sh finds the program here; leftovers of killed ranks stay in the folder.
            .env("CARGO_TARGET_DIR", program.parent().unwrap().parent().unwrap())
            .env("PATH", format!("{}:{path}", checkout.join("native/bin").display()))
            .env("TMPDIR", self.folder.path())
            .env("OMPI_MCA_btl_sm_backing_directory", self.folder.path())
            .env_remove("PRTE_MCA_rmaps_default_mapping_policy")
            .output()
            .unwrap();
        assert!(output.status.success(), "{job:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// One field of `scontrol show job`.
    pub fn field(&self, job: &str, name: &str) -> String {
        let text = self.stdout_of("scontrol", &["-o", "show", "job", job]);
        let found = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    }

    /// Waits until `done` returns true; on timeout panics with the content of `log`.
    pub fn wait(&self, what: &str, log: &Path, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > Duration::from_secs(240) {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("timed out waiting for {what}; {}\n{log}", self.stdout_of("squeue", &[]));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the job is in a final state, which it returns.
    pub fn wait_for_end(&self, job: &str, log: &Path) -> String {
        let final_states = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"];
        self.wait("the end of the job", log, || final_states.contains(&self.field(job, "JobState").as_str()));
        self.field(job, "JobState")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.command("scancel").args(["-u", "root"]).status();
        let start = Instant::now();
        while !self.stdout_of("squeue", &["-h"]).is_empty() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(200));
        }
        // The controller goes last: the nodes report to it when they shut down.
        for daemon in self.daemons.iter_mut().rev() {
            // SAFETY: our child, which has not been waited for.
            unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
            let start = Instant::now();
            while daemon.try_wait().unwrap().is_none() {
                if start.elapsed() > Duration::from_secs(5) {
                    daemon.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// Creates two device files that Slurm allocates as GPUs; returns 0 if they cannot be created.
fn fake_gpus(dir: &Path) -> u32 {
    for number in 0..2 {
        let path = std::ffi::CString::new(dir.join(format!("gpu{number}")).to_str().unwrap()).unwrap();
        // SAFETY: `path` is NUL-terminated; the device is never opened.
        if unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(195, number)) } != 0 {
            return 0;
        }
    }
    let file = format!("NodeName=node1,node2 Name=gpu File={}/gpu[0-1]\n", dir.display());
    std::fs::write(dir.join("gres.conf"), file).unwrap();
    2
}
