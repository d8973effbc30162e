//! Can somebody listen on a port?

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, ToSocketAddrs};

use common::problem::{ErrorCode, Problem};

use super::failure;

/// Tries to listen on each of the addresses; says who does already, if that can be found.
pub fn check(port: u16, listen_addresses: &str) -> Result<(), Problem> {
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse::<u16>().ok())
        .unwrap_or(1024);
    if port < lowest {
        return Err(Problem::new(
            ErrorCode::PermissionDenied,
            format!("PostgreSQL, which never runs as root, may not listen on port {port}"),
            format!("choose a port from {lowest} to 65535"),
        ));
    }
    for name in listen_addresses
        .split(',')
        .map(str::trim)
        .filter(|n| !n.is_empty())
    {
        for (address, required) in addresses(name)? {
            match TcpListener::bind((address, port)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    return Err(Problem::new(
                        ErrorCode::PortInUse,
                        format!("{} on {address} port {port}", listener(port)),
                        "choose another port, or stop that program",
                    ));
                }
                // A host without IPv6 listens on what it has, as PostgreSQL does.
                Err(_) if !required => {}
                Err(error) => {
                    return Err(Problem::new(
                        ErrorCode::InvalidField,
                        format!("this host cannot listen on {address}: {error}"),
                        "name addresses of this host, or * for all of them",
                    ));
                }
            }
        }
    }
    Ok(())
}

fn addresses(name: &str) -> Result<Vec<(IpAddr, bool)>, Problem> {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    match name {
        "*" => return Ok(vec![(v4, true), (v6, false)]),
        "0.0.0.0" => return Ok(vec![(v4, true)]),
        "::" => return Ok(vec![(v6, true)]),
        _ => {}
    }
    if let Ok(address) = name.parse() {
        return Ok(vec![(address, true)]);
    }
    let found = (name, 0)
        .to_socket_addrs()
        .map_err(|e| failure(ErrorCode::InvalidField, format!("resolve {name}"), e))?;
    let found: BTreeSet<IpAddr> = found.map(|a| a.ip()).collect();
    Ok(found.into_iter().map(|a| (a, a.is_ipv4())).collect())
}

/// A subject for "… on address port": the program that listens, as far as /proc tells.
fn listener(port: u16) -> String {
    let Some((pid, name)) = listening_process(port) else {
        return "another program listens".into();
    };
    format!("{name} (pid {pid}) listens")
}

fn listening_process(port: u16) -> Option<(u32, String)> {
    let sockets: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = files.flatten().any(|file| {
            std::fs::read_link(file.path())
                .is_ok_and(|target| sockets.contains(&*target.to_string_lossy()))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let matches = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
            matches.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_names_the_program_that_listens() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        for addresses in ["*", "127.0.0.1", "localhost"] {
            let problem = check(port, addresses).unwrap_err();
            assert_eq!(problem.code, ErrorCode::PortInUse, "{addresses}");
            let pid = format!("(pid {})", std::process::id());
            assert!(problem.message.contains(&pid), "{}", problem.message);
        }
        drop(taken);
        check(port, "*").unwrap();
    }

    #[test]
    fn addresses_that_are_not_ours_and_privileged_ports_are_refused() {
        assert_eq!(
            check(54321, "192.0.2.1").unwrap_err().code,
            ErrorCode::InvalidField
        );
        assert_eq!(check(0, "*").unwrap_err().code, ErrorCode::PermissionDenied);
    }
}
