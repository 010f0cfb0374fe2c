//! Compares the stores of all nodes with each other and with what was written.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use super::cluster::{Cluster, ClusterError};
use super::workload::{Tally, Volume};

/// Reads every volume's store on every node, which must be stopped cleanly. The differences between
/// nodes come back in words; what differs from the model goes to the tally, and is counted here too.
pub fn compare(
    cluster: &Cluster,
    volumes: &[Arc<Volume>],
    tally: &Tally,
) -> Result<Vec<String>, ClusterError> {
    const CHUNK: usize = 1 << 20;
    let mut findings = Vec::new();
    for volume in volumes {
        let size = volume.oracle().size();
        let mut files = Vec::new();
        for node in (0..cluster.len()).filter(|n| !cluster.is_witness(*n)) {
            let path = cluster.store(node, &volume.name);
            let file = File::open(&path).map_err(|source| ClusterError::Io {
                what: "open",
                path: path.clone(),
                source,
            })?;
            files.push((path, file));
        }
        let mut first = vec![0; CHUNK];
        let mut other = vec![0; CHUNK];
        let mut at = 0;
        let mut different = vec![false; files.len()];
        while at < size {
            let length = CHUNK.min((size - at) as usize);
            for (node, (path, file)) in files.iter_mut().enumerate() {
                let into = if node == 0 {
                    &mut first[..length]
                } else {
                    &mut other[..length]
                };
                file.read_exact(into).map_err(|source| ClusterError::Io {
                    what: "read",
                    path: path.clone(),
                    source,
                })?;
                if node == 0 {
                    let losses = volume.oracle().settle(at, &first[..length]);
                    if let Some((loss, name)) = losses.first().map(|loss| (loss, &volume.name)) {
                        findings.push(format!("{name} in {}: {loss}", path.display()));
                    }
                    tally.note_checked(&volume.name, length as u64, losses);
                } else if first[..length] != other[..length] && !different[node] {
                    different[node] = true;
                    let place = first.iter().zip(&other).position(|(a, b)| a != b);
                    findings.push(format!(
                        "{} differs between {} and {} from byte {} on",
                        volume.name,
                        cluster.name(0),
                        cluster.name(node),
                        at + place.unwrap_or(0) as u64
                    ));
                }
            }
            at += length as u64;
        }
    }
    Ok(findings)
}
