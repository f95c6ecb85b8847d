//! Endpoints and EndpointSlices: where a Service's traffic goes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::Strategy;
use crate::object::{list, number, text};
use crate::status::FieldError;
use crate::validate::{dns_label, dns_subdomain, immutable, one_of};

/// As in Kubernetes: a slice is to stay small enough to be sent to every node at each change.
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;

pub struct Endpoints;

impl Strategy for Endpoints {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        for (n, subset) in list(new, "/subsets").iter().enumerate() {
            let at = format!("subsets[{n}]");
            if list(subset, "/addresses").is_empty() && list(subset, "/notReadyAddresses").is_empty() {
                errors.push(FieldError::required(&at, "must specify `addresses` or `notReadyAddresses`"));
            }
            for field in ["addresses", "notReadyAddresses"] {
                for (m, address) in list(subset, &format!("/{field}")).iter().enumerate() {
                    let ip = text(address, "/ip");
                    usable_address(ip, &format!("{at}.{field}[{m}].ip"), errors);
                }
            }
            ports(list(subset, "/ports"), &format!("{at}.ports"), errors);
        }
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

pub struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let type_ = text(new, "/addressType");
        if type_.is_empty() {
            errors.push(FieldError::required("addressType", ""));
        }
        one_of(new, "/addressType", "addressType", &["FQDN", "IPv4", "IPv6"], errors);
        let endpoints = list(new, "/endpoints");
        if endpoints.len() > ENDPOINTS_MAX {
            errors.push(FieldError::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
        }
        for (n, endpoint) in endpoints.iter().enumerate() {
            let at = format!("endpoints[{n}]");
            let addresses = list(endpoint, "/addresses");
            if addresses.is_empty() {
                errors
                    .push(FieldError::required(format!("{at}.addresses"), "must contain at least 1 address"));
            } else if addresses.len() > ADDRESSES_MAX {
                errors.push(FieldError::too_many(format!("{at}.addresses"), addresses.len(), ADDRESSES_MAX));
            }
            for (m, address) in addresses.iter().enumerate() {
                let (address, at) = (address.as_str().unwrap_or_default(), format!("{at}.addresses[{m}]"));
                match (type_, address.parse::<IpAddr>()) {
                    ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                        usable_address(address, &at, errors);
                    }
                    ("IPv4" | "IPv6", _) => {
                        let family = type_;
                        errors.push(FieldError::invalid(at, address, format!("must be an {family} address")));
                    }
                    _ => {
                        if let Err(problem) = dns_subdomain(address, false) {
                            errors.push(FieldError::invalid(at, address, problem));
                        }
                    }
                }
            }
            let hostname = text(endpoint, "/hostname");
            if !hostname.is_empty()
                && let Err(problem) = dns_label(hostname, false)
            {
                errors.push(FieldError::invalid(format!("{at}.hostname"), hostname, problem));
            }
        }
        ports(list(new, "/ports"), "ports", errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/addressType", "addressType", errors);
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// An address that can stand for a pod: not the sender's own machine, nor a group of machines.
fn usable_address(address: &str, at: &str, errors: &mut Vec<FieldError>) {
    let refuse = |why: &str| FieldError::invalid(at, address, why);
    match address.parse::<IpAddr>() {
        Err(_) => errors.push(refuse("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")),
        Ok(ip) if ip.is_unspecified() => errors.push(refuse("may not be unspecified (0.0.0.0 or ::)")),
        Ok(ip) if ip.is_loopback() => {
            errors.push(refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)"));
        }
        Ok(IpAddr::V4(ip)) if ip.is_link_local() => {
            errors.push(refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)"));
        }
        Ok(ip) if ip.is_multicast() => {
            errors.push(refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"));
        }
        Ok(_) => {}
    }
}

fn ports(ports: &[Value], at: &str, errors: &mut Vec<FieldError>) {
    if ports.len() > PORTS_MAX {
        return errors.push(FieldError::too_many(at, ports.len(), PORTS_MAX));
    }
    let mut names = BTreeSet::new();
    for (n, port) in ports.iter().enumerate() {
        let at = format!("{at}[{n}]");
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 && port.get("name").is_none() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !name.is_empty()
            && let Err(problem) = dns_label(name, false)
        {
            errors.push(FieldError::invalid(format!("{at}.name"), name, problem));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        if let Some(number) = number(port, "/port")
            && !(1..=65535).contains(&number)
        {
            let why = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("{at}.port"), number, why));
        }
        one_of(port, "/protocol", &format!("{at}.protocol"), &["SCTP", "TCP", "UDP"], errors);
    }
}
