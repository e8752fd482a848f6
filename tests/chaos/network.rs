//! A network of its own for an experiment that would take something from everybody else on this machine.

use std::fs;
use std::io::BufRead as _;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with a loopback device, as long as the process that holds it.
pub(crate) struct Network(Child);

impl Network {
    /// Makes one, with these ports to connect from.
    pub(crate) fn with_ports(ports: &str) -> Result<Self, String> {
        let script = format!(
            "ip link set lo up && echo '{ports}' > /proc/sys/net/ipv4/ip_local_port_range \
             && echo ready && exec sleep 120"
        );
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut network = Self(child);
        let mut line = String::new();
        if let Some(out) = network.0.stdout.take() {
            drop(std::io::BufReader::new(out).read_line(&mut line));
        }
        if line.trim() == "ready" {
            Ok(network)
        } else {
            Err("no right to a network namespace".to_owned())
        }
    }

    /// Does something in it: on a thread of its own, with those that it starts.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, String> {
        std::thread::scope(|scope| {
            let inside = || {
                self.enter()?;
                Ok(act())
            };
            scope.spawn(inside).join().expect("no panic in there")
        })
    }

    /// Moves the calling thread, and those that it starts, into this network.
    fn enter(&self) -> Result<(), String> {
        let path = format!("/proc/{}/ns/net", self.0.id());
        let file = fs::File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(file.as_fd(), kind)
            .map_err(|error| format!("no right to enter a network namespace: {error}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
