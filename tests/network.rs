//! Addresses for processes: a network namespace for each where the system lets
//! us make them, else the loopback's many addresses. Links can be cut and
//! throttled only in namespaces.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Says what is not tried here. Not by a macro: what those print is kept back
/// when a test goes well, and this is to be seen.
pub fn skip(what: &str) {
    // A test without a terminal is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Networks of this process, so that tests can run side by side.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// A place for one process.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its own address.
    pub address: Ipv4Addr,
    namespace: Option<String>,
    /// The host's end of its cable.
    cable: Option<String>,
}

/// A network of places. Dropping it takes it down.
#[derive(Debug)]
pub struct Network {
    /// The switch that all cables end in.
    bridge: Option<String>,
    prefix: [u8; 3],
    places: Vec<Place>,
}

impl Network {
    /// Namespaces if they can be made. If not it says so, loudly, and places are
    /// addresses of the loopback.
    pub fn new() -> Self {
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let bridge = format!("ch{process}b{number}");
        // Tests run at the same time in other processes, too.
        let subnet = (process * 7 + number) % (1 << 14);
        let prefix = [10, 192 | (subnet >> 8) as u8, subnet as u8];
        let gateway = format!("{}.{}.{}.254/24", prefix[0], prefix[1], prefix[2]);
        let made = ip(&format!("link add {bridge} type bridge"))
            .and_then(|()| ip(&format!("addr add {gateway} dev {bridge}")))
            .and_then(|()| ip(&format!("link set {bridge} up")));
        match made {
            Ok(()) => Self { bridge: Some(bridge), prefix, places: Vec::new() },
            Err(reason) => {
                skip(&format!("network namespaces ({reason}); processes share the loopback"));
                let _ = ip(&format!("link del {bridge}"));
                Self { bridge: None, prefix: [127, prefix[1], prefix[2]], places: Vec::new() }
            }
        }
    }

    /// Whether links can be cut and throttled.
    pub fn has_links(&self) -> bool {
        self.bridge.is_some()
    }

    /// A new place.
    pub fn place(&mut self) -> Place {
        let number = self.places.len() as u8 + 1;
        assert!(number < 250, "a network has room for so many processes");
        let [a, b, c] = self.prefix;
        let address = Ipv4Addr::new(a, b, c, number);
        let place = match &self.bridge {
            None => Place { address, namespace: None, cable: None },
            Some(bridge) => {
                let namespace = format!("{bridge}n{number}");
                let cable = format!("{bridge}v{number}");
                for command in [
                    format!("netns add {namespace}"),
                    format!("link add {cable} type veth peer name eth0 netns {namespace}"),
                    format!("link set {cable} master {bridge} up"),
                    format!("-n {namespace} addr add {address}/24 dev eth0"),
                    format!("-n {namespace} link set eth0 up"),
                    format!("-n {namespace} link set lo up"),
                ] {
                    ip(&command).expect("the first steps to a namespace went well");
                }
                Place { address, namespace: Some(namespace), cable: Some(cable) }
            }
        };
        self.places.push(place.clone());
        place
    }

    /// Cuts a place off from all others, silently: nothing is refused, nothing arrives.
    pub fn cut(&self, place: &Place) {
        self.set_cable(place, "down");
    }

    /// Undoes [`Self::cut`] and [`Self::throttle`].
    pub fn mend(&self, place: &Place) {
        self.set_cable(place, "up");
        if let Some(cable) = &place.cable {
            // There is none if it was not throttled.
            let _ = run("tc", &format!("qdisc del dev {cable} root"));
        }
    }

    /// Lets a place receive only so much: what is sent to it comes late.
    pub fn throttle(&self, place: &Place, kbit_per_s: u32) {
        let cable = place.cable.as_ref().expect("only namespaces have links");
        run(
            "tc",
            &format!("qdisc replace dev {cable} root tbf rate {kbit_per_s}kbit burst 16kbit latency 2s"),
        )
        .expect("tc comes with ip");
    }

    /// Lets two places reach everyone but each other, silently.
    pub fn part(&self, one: &Place, other: &Place) {
        self.set_parted(one, other, "add");
    }

    /// Undoes [`Self::part`].
    pub fn join(&self, one: &Place, other: &Place) {
        self.set_parted(one, other, "del");
    }

    fn set_parted(&self, one: &Place, other: &Place, change: &str) {
        for (at, peer) in [(one, other), (other, one)] {
            let namespace = at.namespace.as_ref().expect("only namespaces have links");
            ip(&format!("-n {namespace} route {change} blackhole {}/32", peer.address))
                .expect("a namespace has routes of its own");
        }
    }

    fn set_cable(&self, place: &Place, state: &str) {
        let cable = place.cable.as_ref().expect("only namespaces have links");
        ip(&format!("link set {cable} {state}")).expect("the cable is there");
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// The host's own, at the loopback.
    pub fn loopback() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, namespace: None, cable: None }
    }

    /// A command that runs at this place.
    pub fn command(&self, program: &str) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, program]);
                command
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Some(bridge) = &self.bridge else { return };
        // Whatever does not go away now is in nobody's way.
        for namespace in self.places.iter().filter_map(|place| place.namespace.as_ref()) {
            let _ = ip(&format!("netns del {namespace}"));
        }
        let _ = ip(&format!("link del {bridge}"));
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
