//! An etcd of a test's own: members on a loopback address, in a folder that goes away with them.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use etcd_client::{Client, Permission};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};

use crate::{Etcd, EtcdConfig, EtcdTls, EtcdUser};

/// Etcd's user that may do all things; users can be asked for only if there is one.
const ROOT: &str = "root";

/// An etcd with members that can be killed and started again. What still runs is killed at its end.
pub struct Members {
    folder: PathBuf,
    members: Vec<Member>,
    tls: Option<Files>,
    user: Option<EtcdUser>,
}

/// Certificates and a key in PEM files: the authority's, and what a client shows.
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// What the members show.
    member: (PathBuf, PathBuf),
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
        Self::speaking(folder.into(), count, |_, _| None)
    }

    /// The same, but they speak TLS, and take clients with a certificate of their authority alone.
    ///
    /// # Panics
    /// If etcd is not installed.
    pub fn start_with_tls(folder: impl Into<PathBuf>, count: usize) -> Self {
        Self::speaking(folder.into(), count, |folder, address| Some(Files::make(folder, address)))
    }

    fn speaking(folder: PathBuf, count: usize, tls: impl FnOnce(&Path, Ipv4Addr) -> Option<Files>) -> Self {
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
        let tls = tls(&folder, address);
        let members = Self { folder, members, tls, user: None };
        drop(bound);
        (0..count).for_each(|nth| members.revive(nth));
        members
    }

    /// How to reach them.
    ///
    /// # Panics
    /// If the files of certificates are gone.
    pub fn config(&self) -> EtcdConfig {
        let members = self.members.iter().map(|member| member.client.clone()).collect();
        let read = |file| std::fs::read(file).expect("a file");
        let tls = self.tls.as_ref().map(|files| EtcdTls {
            ca: read(&files.ca),
            identity: Some((read(&files.cert), read(&files.key))),
        });
        EtcdConfig { members, prefix: "wharf".to_owned(), tls, user: self.user.clone() }
    }

    /// What the members' clients need, if they speak TLS.
    pub fn files(&self) -> Option<&Files> {
        self.tls.as_ref()
    }

    /// From now on they ask who comes; the user in [`Members::config`] may use the store's keys and no others.
    ///
    /// # Panics
    /// If they refuse.
    pub async fn ask_for_user(&mut self) {
        const ROLE: &str = "keeper";
        let config = self.config();
        let options = config.clone().options();
        let mut etcd = Client::connect(config.members, Some(options)).await.expect("etcd is there");
        let user = EtcdUser { name: "wharf".to_owned(), password: "pass:word".to_owned() };
        let mut made = etcd.user_add(ROOT, "root's own", None).await;
        for _ in 0..100 {
            if made.is_ok() {
                break;
            }
            // It begins; nothing tells when it is done.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            made = etcd.user_add(ROOT, "root's own", None).await;
        }
        made.expect("a user");
        etcd.user_grant_role(ROOT, ROOT).await.expect("root's role");
        etcd.role_add(ROLE).await.expect("a role");
        let keys = Permission::read_write(format!("/{}/", config.prefix)).with_prefix();
        etcd.role_grant_permission(ROLE, keys).await.expect("a permission");
        etcd.user_add(user.name.clone(), user.password.clone(), None).await.expect("a user");
        etcd.user_grant_role(user.name.clone(), ROLE).await.expect("its role");
        etcd.auth_enable().await.expect("auth enable");
        self.user = Some(user);
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
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://{}", member.client);
        let peer = |member: &Member| format!("http://{}", member.peer);
        let cluster = self.members.iter().map(|other| format!("{}={}", other.name, peer(other)));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(&member.name).with_extension("log"))
            .expect("a log");
        // setpriv (util-linux): it is to end with this process, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--log-level", "warn"])
            .args(["--name", &member.name, "--initial-cluster", &cluster])
            .arg("--data-dir")
            .arg(self.folder.join(&member.name))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)])
            .args(["--heartbeat-interval", heartbeat, "--election-timeout", election])
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(Files { ca, member: (cert, key), .. }) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
        }
        let started = command.spawn();
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
            let options = self.config().options();
            let Ok(mut client) = Client::connect([&member.client], Some(options)).await else { continue };
            let Ok(status) = client.status().await else { continue };
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                return nth;
            }
        }
        panic!("no member leads");
    }
}

impl Files {
    /// A new authority, and what it issued to members at `address` and to their clients.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn make(folder: &Path, address: Ipv4Addr) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "etcd-ca");
        let key = KeyPair::generate().expect("a key");
        let write = |name: &str, pem: String| {
            let file = folder.join(name);
            std::fs::write(&file, pem).expect("a file");
            file
        };
        let ca = write("ca.crt", authority.self_signed(&key).expect("a certificate").pem());
        let issuer = Issuer::new(authority, key);
        let issue = |name: &str, uses: &[ExtendedKeyUsagePurpose], names: Vec<SanType>| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = uses.to_vec();
            params.subject_alt_names = names;
            let key = KeyPair::generate().expect("a key");
            let cert = params.signed_by(&key, &issuer).expect("a certificate").pem();
            (write(&format!("{name}.crt"), cert), write(&format!("{name}.key"), key.serialize_pem()))
        };
        // Etcd's own gateway comes to it as a client, with this one.
        let uses = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let member = issue("member", &uses, vec![SanType::IpAddress(IpAddr::V4(address))]);
        let (cert, key) = issue("client", &uses[1..], Vec::new());
        Self { ca, cert, key, member }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|nth| self.kill(nth));
    }
}
