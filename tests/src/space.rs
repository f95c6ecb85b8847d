use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;

use crate::{Cluster, Forward, Said};

/// The cluster that the tests of one program share: there while any of them runs, so that it ends with the last.
static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// A namespace for one test, in a cluster with all images that it shares with the others.
pub struct Space {
    pub cluster: Arc<Cluster>,
    pub name: &'static str,
}

impl Space {
    /// Makes the namespace, and first the cluster if it is not there.
    ///
    /// # Panics
    /// If either fails.
    #[track_caller]
    pub fn new(name: &'static str) -> Self {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Cluster::up());
            cluster.push_images();
            *shared = Arc::downgrade(&cluster);
            cluster
        });
        drop(shared);
        Self::of(cluster, name)
    }

    /// Makes the namespace in a cluster that has its images.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn of(cluster: Arc<Cluster>, name: &'static str) -> Self {
        let space = Self { cluster, name };
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        space.cluster.wctl_reading(&["apply", "-f", "-"], &namespace).ok();
        // Pods need their namespace's account, which a controller makes.
        crate::eventually("the namespace has its service account", || {
            let said = space.wctl(&["get", "serviceaccount", "default", "-o", "name"]);
            if said.code == Some(0) { Ok(()) } else { Err(said.to_string()) }
        });
        space
    }

    /// Runs `wctl` in this namespace.
    pub fn wctl(&self, arguments: &[&str]) -> Said {
        self.cluster.wctl(&[&["-n", self.name], arguments].concat())
    }

    pub fn wctl_reading(&self, arguments: &[&str], stdin: &str) -> Said {
        self.cluster.wctl_reading(&[&["-n", self.name], arguments].concat(), stdin)
    }

    /// Applies objects and, if `wait` is set, waits until they are available.
    #[track_caller]
    pub fn apply(&self, objects: &[Value], wait: bool) {
        let text: Vec<String> = objects.iter().map(Value::to_string).collect();
        let arguments: &[&str] =
            if wait { &["apply", "-f", "-", "--wait", "--timeout", "60s"] } else { &["apply", "-f", "-"] };
        self.wctl_reading(arguments, &text.join("\n---\n")).ok();
    }

    /// Objects as JSON: `get` with these words.
    #[track_caller]
    pub fn get(&self, words: &[&str]) -> Value {
        self.wctl(&[&["get"], words, &["-o", "json"]].concat()).json()
    }

    /// The pods with the label `app`, those that are ending left out.
    #[track_caller]
    pub fn pods(&self, app: &str) -> Vec<Value> {
        let list = self.get(&["pods", "-l", &format!("app={app}")]);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    #[track_caller]
    pub fn forward(&self, what: &str, port: u16) -> Forward {
        let mut command = self.cluster.command();
        command.args(["-n", self.name]);
        Forward::start(command, what, port)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let events = self.wctl(&["get", "pods,events", "-o", "wide"]);
            eprintln!("{}\n{}", events.stdout, self.cluster.last_words());
        }
        // Its pods would load the machine for the tests that follow.
        self.cluster.wctl(&["delete", "namespace", self.name, "--no-wait"]);
    }
}
