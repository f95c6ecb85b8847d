//! An etcd of a test's own: members on a loopback address, in a folder that goes away with them.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::{Etcd, EtcdConfig};

/// An etcd with members that can be killed and started again. What still runs is killed at its end.
pub struct Members {
    folder: PathBuf,
    members: Vec<Member>,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    process: Mutex<Option<Child>>,
}

impl Members {
    /// `count` members with their data in `folder`, started; they may need a moment until they answer.
    ///
    /// # Panics
    /// If etcd is not installed (Debian: `etcd-server`).
    pub fn start(folder: impl Into<PathBuf>, count: usize) -> Self {
        // All of 127.0.0.0/8 is this machine's: an address for each process keeps tests apart.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 70, high, low);
        // All are bound before any is let go, so that they differ.
        let bound: Vec<TcpListener> =
            (0..2 * count).map(|_| TcpListener::bind((address, 0)).expect("a free port")).collect();
        let mut ports = bound.iter().map(|port| port.local_addr().expect("an address").to_string());
        let mut take = || ports.next().expect("two for each member");
        let member = |nth| Member {
            name: format!("member-{nth}"),
            client: take(),
            peer: take(),
            process: Mutex::default(),
        };
        let members = (0..count).map(member).collect();
        let members = Self { folder: folder.into(), members };
        drop(bound);
        (0..count).for_each(|nth| members.revive(nth));
        members
    }

    /// How to reach them.
    pub fn config(&self) -> EtcdConfig {
        let members = self.members.iter().map(|member| member.client.clone()).collect();
        EtcdConfig { members, prefix: "wharf".to_owned(), tls: None, user: None }
    }

    /// An engine on them.
    ///
    /// # Panics
    /// If they do not answer.
    pub async fn engine(&self) -> Etcd {
        Etcd::open(self.config()).await.expect("etcd answers")
    }

    /// Starts a member, if it does not run, on the data that it has.
    ///
    /// # Panics
    /// If etcd is not installed.
    pub fn revive(&self, nth: usize) {
        let member = &self.members[nth];
        let mut process = member.process.lock().expect("no test panics here");
        if process.is_some() {
            return;
        }
        // A heartbeat that a busy machine still keeps, and an election that a test can wait for.
        let (heartbeat, election) = if self.members.len() == 1 { ("10", "100") } else { ("100", "1000") };
        let url = |at: &str| format!("http://{at}");
        let cluster = self.members.iter().map(|other| format!("{}={}", other.name, url(&other.peer)));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(&member.name).with_extension("log"))
            .expect("a log");
        // setpriv (util-linux): it is to end with this process, however that ends.
        let started = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--log-level", "warn"])
            .args(["--name", &member.name, "--initial-cluster", &cluster])
            .arg("--data-dir")
            .arg(self.folder.join(&member.name))
            .args(["--listen-client-urls", &url(&member.client)])
            .args(["--advertise-client-urls", &url(&member.client)])
            .args(["--listen-peer-urls", &url(&member.peer)])
            .args(["--initial-advertise-peer-urls", &url(&member.peer)])
            .args(["--heartbeat-interval", heartbeat, "--election-timeout", election])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        *process = Some(started.expect("setpriv and etcd (Debian: util-linux, etcd-server)"));
    }

    /// `kill -9` of a member, if it runs.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn kill(&self, nth: usize) {
        let process = self.members[nth].process.lock().expect("no test panics here").take();
        if let Some(mut process) = process {
            process.kill().expect("kill");
            process.wait().expect("wait");
        }
    }

    /// The member that leads, asked of each in turn until one knows.
    ///
    /// # Panics
    /// If none of them knows.
    pub async fn leader(&self) -> usize {
        for (nth, member) in self.members.iter().enumerate() {
            let Ok(mut client) = etcd_client::Client::connect([&member.client], None).await else { continue };
            let Ok(status) = client.status().await else { continue };
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                return nth;
            }
        }
        panic!("no member leads");
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|nth| self.kill(nth));
    }
}
