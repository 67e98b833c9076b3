//! Files of Azure service tags; one in the size and shape of the real one, which cannot be shipped.
//!
//! As there, `AzureCloud` holds what `AzureCloud.<region>` holds, `<service>` what `<service>.<region>` holds, and the
//! networks of a service in a region lie in those of the region.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde_json::{Value, json};

const DIRECTIONS: [&str; 4] = ["east", "west", "north", "south"];
const PLACES: [&str; 15] = [
    "us",
    "europe",
    "asia",
    "india",
    "japan",
    "uk",
    "france",
    "germany",
    "brazil",
    "korea",
    "africa",
    "norway",
    "australia",
    "canada",
    "uae",
];
const REGIONS: u32 = 60;
const SERVICES: u32 = 48;
/// Tags without regions.
const OTHERS: u32 = 11;

/// Tags of the large file: the cloud and the services, whole and by region, and the others.
pub const TAGS: usize = ((SERVICES + 1) * (REGIONS + 1) + OTHERS) as usize;
/// Different IPv4 networks of the large file.
pub const IPV4_PREFIXES: usize = (CLOUD_V4 + SERVICES_V4) as usize;
/// Different IPv6 networks of the large file.
pub const IPV6_PREFIXES: usize = (CLOUD_V6 + SERVICES_V6) as usize;
/// Networks of `AzureCloud` in the large file.
pub const CLOUD_PREFIXES: usize = (CLOUD_V4 + CLOUD_V6) as usize;

const CLOUD_V4: u32 = 9_000;
const CLOUD_V6: u32 = 3_400;
const SERVICES_V4: u32 = 28_500;
const SERVICES_V6: u32 = 10_000;

/// Source of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The weekly download.
    Download,
    /// The REST operation "Service Tags – List".
    Answer,
}

/// Contents of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFile {
    /// Number of this edition.
    pub change_number: u32,
    /// The tags with their networks.
    pub tags: BTreeMap<String, Vec<String>>,
}

impl TagFile {
    /// A file with these tags.
    #[must_use]
    pub fn new(change_number: u32, tags: &[(&str, &[&str])]) -> Self {
        let tags = tags.iter().map(|(name, prefixes)| {
            let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned());
            ((*name).to_owned(), prefixes.collect())
        });
        Self {
            change_number,
            tags: tags.collect(),
        }
    }

    /// A file in the real size. Four editions that follow each other have no network in common.
    #[must_use]
    pub fn large(change_number: u32) -> Self {
        let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut others = Vec::new();
        let mut add = |name: &str, region: &str, prefix: &str| {
            for name in [name.to_owned(), format!("{name}.{region}")] {
                tags.entry(name).or_default().push(prefix.to_owned());
            }
        };
        for number in 0..REGIONS {
            let region = Region {
                number,
                edition: change_number % 4,
            };
            let name = region.name();
            let cloud = region.cloud();
            for prefix in &cloud {
                add("AzureCloud", &name, prefix);
            }
            for (index, prefix) in (0..).zip(region.of_services()) {
                add(&service(index % SERVICES), &name, &prefix);
            }
            // Some networks are wholly a service's.
            for prefix in cloud.iter().take(5) {
                add(&service(0), &name, prefix);
            }
            if number < OTHERS {
                others.push((format!("Other{number}"), cloud[..10].to_vec()));
            }
        }
        tags.extend(others);
        Self {
            change_number,
            tags,
        }
    }

    /// The file as it is given out.
    #[must_use]
    pub fn json(&self, form: Form) -> String {
        let is_download = form == Form::Download;
        let number = |number: u32| {
            if is_download {
                json!(number)
            } else {
                json!(number.to_string())
            }
        };
        let tags = self.tags.iter().map(|(name, prefixes)| {
            let (service, region) = name.split_once('.').unwrap_or((name, ""));
            let mut properties = json!({
                "changeNumber": number(self.change_number),
                "region": region,
                "platform": "Azure",
                "systemService": service,
                "addressPrefixes": prefixes,
                "networkFeatures": ["API", "NSG", "UDR", "FW"],
            });
            if is_download {
                properties["regionId"] = json!(7);
            }
            json!({ "name": name, "id": name, "properties": properties })
        });
        let values: Vec<Value> = tags.collect();
        let mut file = json!({
            "changeNumber": number(self.change_number),
            "cloud": "Public",
            "values": values,
        });
        if is_download {
            return serde_json::to_string_pretty(&file).expect("JSON");
        }
        file["name"] = json!("Public");
        file["etag"] = json!("W/\"0\"");
        file["nextLink"] = Value::Null;
        file.to_string()
    }
}

/// Name of a service.
fn service(number: u32) -> String {
    const NAMES: [&str; 4] = ["Storage", "Sql", "AzureMonitor", "AzureKeyVault"];
    NAMES
        .get(number as usize)
        .map_or_else(|| format!("Service{number}"), |name| (*name).to_owned())
}

/// A region of one edition of the large file.
#[derive(Clone, Copy)]
struct Region {
    number: u32,
    edition: u32,
}

impl Region {
    fn name(self) -> String {
        let number = self.number as usize;
        let place = PLACES[number / DIRECTIONS.len()];
        format!("{}{place}", DIRECTIONS[number % DIRECTIONS.len()])
    }

    /// The region's share of a number that all have together.
    const fn share(self, of_all: u32) -> u32 {
        of_all * (self.number + 1) / REGIONS - of_all * self.number / REGIONS
    }

    /// Length and start of a network of the region.
    const fn block_v4(self, slot: u32) -> (u32, u32) {
        let bits = 20 + self.number % 3;
        let region = ((20 + 4 * self.edition) << 24) + (self.number << 20);
        (bits, region + (slot << (32 - bits)))
    }

    const fn block_v6(self, slot: u32) -> (u32, u128) {
        let bits = 44 + self.number % 5;
        let head = ((0x2603 + self.edition) << 16) + 0x1000 + self.number;
        (
            bits,
            ((head as u128) << 96) + ((slot as u128) << (128 - bits)),
        )
    }

    /// Networks of `AzureCloud` in the region.
    fn cloud(self) -> Vec<String> {
        let v4 = (0..self.share(CLOUD_V4)).map(|slot| {
            let (bits, start) = self.block_v4(slot);
            format!("{}/{bits}", Ipv4Addr::from(start))
        });
        let v6 = (0..self.share(CLOUD_V6)).map(|slot| {
            let (bits, start) = self.block_v6(slot);
            format!("{}/{bits}", Ipv6Addr::from(start))
        });
        v4.chain(v6).collect()
    }

    /// Networks of services: some in each of those.
    fn of_services(self) -> Vec<String> {
        let blocks = self.share(CLOUD_V4);
        let v4 = (0..self.share(SERVICES_V4)).map(|number| {
            let (_, block) = self.block_v4(number % blocks);
            let start = block + ((number / blocks) << 8);
            format!("{}/{}", Ipv4Addr::from(start), 24 + number % 9)
        });
        let blocks = self.share(CLOUD_V6);
        let v6 = (0..self.share(SERVICES_V6)).map(|number| {
            const BITS: [u32; 9] = [56, 58, 60, 62, 64, 120, 122, 124, 126];
            let (_, block) = self.block_v6(number % blocks);
            let start = block + (u128::from(number / blocks + 1) << 72);
            format!("{}/{}", Ipv6Addr::from(start), BITS[number as usize % 9])
        });
        v4.chain(v6).collect()
    }
}
