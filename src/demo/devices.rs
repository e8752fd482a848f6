//! Who the simulated clients are: what each says about itself, and from which address.

use std::net::Ipv4Addr;

use super::upstream::SERVICES;

/// What the looping source is, in the words of the settings.
pub(super) const LOOP: [(&str, &str); 3] = [
    ("app", "acme"),
    ("sdk", "chat-android"),
    ("sdk_version", "3.2.1"),
];

type Weighted<T> = [(T, u64)];

const SDKS: &Weighted<Sdk> = &[(Sdk::Android, 5), (Sdk::Ios, 4), (Sdk::Web, 3)];
const APPS: &Weighted<&str> = &[
    ("birch", 10),
    ("cedar", 7),
    ("acme", 5),
    ("delta", 4),
    ("ember", 3),
    ("fjord", 3),
    ("grove", 2),
    ("heron", 2),
    ("iris", 1),
    ("juno", 1),
];
const HOSTS: &Weighted<&str> = &[
    ("eu.api.example.com", 3),
    ("us.api.example.com", 2),
    ("ap.api.example.com", 1),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sdk {
    Android,
    Ios,
    Web,
}

impl Sdk {
    fn name(self) -> &'static str {
        match self {
            Self::Android => "chat-android",
            Self::Ios => "chat-ios",
            Self::Web => "web",
        }
    }

    /// Version 3.2.1 for Android is in use everywhere but in acme's app, where it will loop.
    fn versions(self, app: &str) -> &'static Weighted<&'static str> {
        match self {
            Self::Android if app == "acme" => &[("3.1.0", 3), ("3.2.0", 4)],
            Self::Android => &[("3.1.0", 3), ("3.2.0", 4), ("3.2.1", 2)],
            Self::Ios => &[("2.9.0", 2), ("3.0.1", 4), ("3.2.1", 1)],
            Self::Web => &[("5.0.2", 1), ("5.1.0", 3)],
        }
    }

    fn user_agents(self) -> &'static Weighted<&'static str> {
        match self {
            Self::Android => &[("okhttp/3.12.2", 1), ("okhttp/4.9.0", 1)],
            Self::Ios => &[("CFNetwork/1220.1 Darwin/20.3.0", 1)],
            Self::Web => &[
                ("Mozilla/5.0 (X11; Linux x86_64)", 1),
                ("Mozilla/5.0 (Macintosh)", 2),
            ],
        }
    }
}

/// Pseudo-random numbers (`SplitMix64`), the same in each run, so that runs can be compared.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns 64 random bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Returns a number from 0 up to 1.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Draws one of a few, each as often as its weight says. There must be one.
    fn draw<T: Copy>(&mut self, of: &Weighted<T>) -> T {
        let total: u64 = of.iter().map(|(_, weight)| weight).sum();
        let mut left = self.next() % total.max(1);
        for (value, weight) in of {
            if left < *weight {
                return *value;
            }
            left -= weight;
        }
        unreachable!("the weights add up to their total")
    }

    /// Draws what is asked for: the request line.
    fn path(&mut self) -> &'static str {
        self.draw(&SERVICES.map(|service| (service.path, service.weight)))
    }
}

/// One installation of an app.
#[derive(Debug)]
pub(super) struct Device {
    /// The address that it comes from; no two devices share one.
    pub(super) address: Ipv4Addr,
    head: String,
}

impl Device {
    /// Draws one that behaves.
    pub(super) fn honest(number: u32, random: &mut Random) -> Self {
        let (sdk, app) = (random.draw(SDKS), random.draw(APPS));
        Self::new(number, sdk, random.draw(sdk.versions(app)), app, random)
    }

    /// Draws one that loops: of one version of one SDK in one app, and otherwise like all others.
    pub(super) fn looping(number: u32, random: &mut Random) -> Self {
        let [(_, app), _, (_, version)] = LOOP;
        Self::new(number, Sdk::Android, version, app, random)
    }

    fn new(number: u32, sdk: Sdk, version: &str, app: &str, random: &mut Random) -> Self {
        let host = random.draw(HOSTS);
        let user_agent = random.draw(sdk.user_agents());
        let head = format!(
            "Host: {host}\r\nUser-Agent: {user_agent}\r\nx-kustomer-client: {}\r\n\
             x-kustomer-version: release-v{version}\r\nx-app-id: {app}\r\n\
             x-kustomer-tracking-token: {:016x}\r\n\r\n",
            sdk.name(),
            random.next(),
        );
        Self {
            address: address(number),
            head,
        }
    }

    /// Returns the bytes of a request.
    pub(super) fn request(&self, random: &mut Random) -> Vec<u8> {
        format!("GET {} HTTP/1.1\r\n{}", random.path(), self.head).into_bytes()
    }
}

/// Returns the address of a device: all of 127.0.0.0/8 leads back to this machine. The first 50,000
/// are in networks (/24) of their own, so that a network says no more than an address.
fn address(number: u32) -> Ipv4Addr {
    let [.., low] = (10 + number % 200).to_be_bytes();
    let [.., middle] = (number / 200 % 250).to_be_bytes();
    let [.., high] = (1 + number / 50_000 % 250).to_be_bytes();
    Ipv4Addr::new(127, low, middle, high)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_honest_device_is_of_the_source_that_will_loop() {
        let mut random = Random::new(1);
        let mut elsewhere = 0;
        for number in 0..5000 {
            let head = Device::honest(number, &mut random).head;
            let is = |text: &str| head.contains(text);
            let version = is("release-v3.2.1\r\n") && is("chat-android");
            assert!(!(version && is("x-app-id: acme\r\n")), "{head}");
            elsewhere += usize::from(version);
        }
        assert!(elsewhere > 100, "other apps use that version, too");
    }

    #[test]
    fn no_two_devices_share_an_address_or_a_network() {
        let networks: BTreeSet<[u8; 3]> = (0..50_000)
            .map(|number| {
                let [a, b, c, _] = address(number).octets();
                [a, b, c]
            })
            .collect();
        assert_eq!(networks.len(), 50_000);
    }
}
