//! Collectives over TCP: every rank is connected with every other one.
//!
//! A frame names its operation and its number, so that ranks that do different things find out at once and do not take
//! one tensor for another. How they meet, and whom to keep out, is said in `meeting.rs`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

pub use super::meeting::Seat;
use super::meeting::{Guest, Met, gone, join, lead, listen};
use super::{Collective, Receivers, Tensor};
use crate::error::{Error, Result};

/// A machine that vanishes without a word is noticed after a minute.
const SILENCE: Duration = Duration::from_secs(60);

/// Another rank.
struct Peer {
    stream: TcpStream,
    address: String,
}

/// Ranks that are all connected.
pub struct Mesh {
    rank: usize,
    on_this_machine: usize,
    /// By rank; none at this rank's own place.
    peers: Vec<Option<Peer>>,
    operations: AtomicU64,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Numbers = 1,
    Bytes,
    Gradient,
    Values,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Numbers, Self::Bytes, Self::Gradient, Self::Values]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Elements of a tensor that are added up at once: they stay in the cache.
const CHUNK: usize = 64 * 1024;

/// A frame's beginning: kind, number of the operation, bytes that follow.
const HEADER: usize = 1 + 8 + 8;

impl Mesh {
    /// Meets the others: rank 0 listens at the port of the seat's master address, the others connect to it. `waiting` is called
    /// while others are still missing, with their number, and may give up.
    ///
    /// # Errors
    /// An address that cannot be had, ranks that do not come within `patience`, two that say they are the same one, or
    /// what `waiting` says.
    pub fn meet(
        seat: &Seat,
        patience: Duration,
        waiting: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        if seat.rank > 0 {
            return Self::new(seat.rank, join(seat, patience, waiting)?);
        }
        Self::lead(seat, &listen(&seat.master)?, patience, waiting)
    }

    /// [`Mesh::meet`] for a rank 0 that listens already.
    ///
    /// # Errors
    /// As for [`Mesh::meet`].
    pub fn lead(
        seat: &Seat,
        listener: &TcpListener,
        patience: Duration,
        waiting: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        Self::new(0, lead(seat, listener, patience, waiting)?)
    }

    fn new(rank: usize, met: Met) -> Result<Self> {
        let mut peers = Vec::new();
        for (rank, guest) in met.guests.into_iter().enumerate() {
            let peer = guest.map(|Guest { stream, place }| -> Result<Peer> {
                prepare(&stream).map_err(gone(rank, &place.address))?;
                Ok(Peer { stream, address: place.address.to_string() })
            });
            peers.push(peer.transpose()?);
        }
        Ok(Self { rank, on_this_machine: met.on_this_machine, peers, operations: AtomicU64::new(0) })
    }

    /// The other ranks.
    fn others(&self) -> impl Iterator<Item = (usize, &Peer)> {
        self.peers.iter().enumerate().filter_map(|(rank, peer)| Some((rank, peer.as_ref()?)))
    }

    /// Ends all connections.
    fn hang_up(&self) {
        for (_, peer) in self.others() {
            // One that is gone already cannot be ended once more.
            let _ = peer.stream.shutdown(Shutdown::Both);
        }
    }

    /// The next operation's number: the same in all ranks.
    fn begin(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed)
    }
}

impl Collective for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn on_this_machine(&self) -> usize {
        self.on_this_machine
    }

    fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        let operation = self.begin();
        // Few numbers: they fit into the system's buffers, so that nobody waits for anybody to read them.
        for (rank, peer) in self.others() {
            peer.send(Kind::Numbers, operation, bytemuck::cast_slice(numbers))
                .map_err(gone(rank, &peer.address))?;
        }
        let own = numbers.to_vec();
        numbers.fill(0.0);
        let mut theirs = vec![0.0f64; own.len()];
        for (rank, peer) in self.peers.iter().enumerate() {
            let addends = match peer {
                None => &own,
                Some(peer) => {
                    let bytes = bytemuck::cast_slice_mut(&mut theirs);
                    peer.receive(rank, Kind::Numbers, operation, bytes)?;
                    &theirs
                }
            };
            numbers.iter_mut().zip(addends).for_each(|(number, addend)| *number += addend);
        }
        Ok(())
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let operation = self.begin();
        match &self.peers[0] {
            None => self.others().try_for_each(|(rank, peer)| {
                peer.send(Kind::Bytes, operation, bytes).map_err(gone(rank, &peer.address))
            }),
            Some(first) => {
                *bytes = vec![0; first.length(0, Kind::Bytes, operation)?];
                first.fill(0, bytes)
            }
        }
    }

    fn reduce(&self, owners: &[usize], tensors: Vec<Box<dyn Tensor + '_>>) -> Result<()> {
        let operation = self.begin();
        let mut by_owner = dealt(owners, tensors, self.peers.len());
        let own = std::mem::take(&mut by_owner[self.rank]);
        let send = |rank: usize, peer: &Peer| {
            by_owner[rank]
                .iter()
                .try_for_each(|tensor| peer.send_tensor(rank, Kind::Gradient, operation, &**tensor))
        };
        self.while_sending(send, || {
            let mut chunks = [vec![0.0; CHUNK], vec![0.0; CHUNK]];
            own.into_iter().try_for_each(|mut tensor| {
                let mut added = Ok(());
                tensor.modify(&mut |values| added = self.add_up(values, operation, &mut chunks));
                added
            })
        })
    }

    fn gather(
        &self,
        owners: &[usize],
        tensors: Vec<Box<dyn Tensor + '_>>,
        receivers: Receivers,
    ) -> Result<()> {
        let operation = self.begin();
        let mut by_owner = dealt(owners, tensors, self.peers.len());
        let own = std::mem::take(&mut by_owner[self.rank]);
        let send = |rank: usize, peer: &Peer| {
            let sent = if receivers.include(rank) { &own[..] } else { &[] };
            sent.iter().try_for_each(|tensor| peer.send_tensor(rank, Kind::Values, operation, &**tensor))
        };
        self.while_sending(send, || {
            for (rank, peer) in self.others().filter(|_| receivers.include(self.rank)) {
                for tensor in &mut by_owner[rank] {
                    let mut received = Ok(());
                    tensor.modify(&mut |values| {
                        let bytes = bytemuck::cast_slice_mut(values);
                        received = peer.receive(rank, Kind::Values, operation, bytes);
                    });
                    received?;
                }
            }
            Ok(())
        })
    }
}

/// Tensors by their owners, in their order.
fn dealt<'a>(
    owners: &[usize],
    tensors: Vec<Box<dyn Tensor + 'a>>,
    world_size: usize,
) -> Vec<Vec<Box<dyn Tensor + 'a>>> {
    let mut by_owner: Vec<Vec<_>> = (0..world_size).map(|_| Vec::new()).collect();
    for (tensor, owner) in tensors.into_iter().zip(owners) {
        by_owner[*owner].push(tensor);
    }
    by_owner
}

impl Mesh {
    /// Adds what the other ranks send of a tensor to this one's part of it, in the order of ranks and a chunk at a time.
    fn add_up(&self, values: &mut [f32], operation: u64, chunks: &mut [Vec<f32>; 2]) -> Result<()> {
        for (rank, peer) in self.others() {
            peer.expect(rank, Kind::Gradient, operation, size_of_val(values))?;
        }
        let [own, theirs] = chunks;
        for sum in values.chunks_mut(CHUNK) {
            let (own, theirs) = (&mut own[..sum.len()], &mut theirs[..sum.len()]);
            own.copy_from_slice(sum);
            sum.fill(0.0);
            for (rank, peer) in self.peers.iter().enumerate() {
                let mut addends = &*own;
                if let Some(peer) = peer {
                    peer.fill(rank, bytemuck::cast_slice_mut(theirs))?;
                    addends = theirs;
                }
                sum.iter_mut().zip(addends).for_each(|(sum, addend)| *sum += addend);
            }
        }
        Ok(())
    }

    /// Sends to each other rank on a thread of its own, and receives meanwhile: so nobody waits for somebody who waits.
    fn while_sending<T>(
        &self,
        send: impl Fn(usize, &Peer) -> Result<()> + Sync,
        receive: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        thread::scope(|scope| {
            let send = &send;
            let sending: Vec<_> =
                self.others().map(|(rank, peer)| scope.spawn(move || send(rank, peer))).collect();
            let received = receive();
            if received.is_err() {
                // Somebody is gone. Those to whom something is still being sent may wait in the same way for us: they are
                // told by the end of the connection.
                self.hang_up();
            }
            let mut sent = Ok(());
            for thread in sending {
                let thread = thread.join();
                let thread = thread.map_err(|_| Error::Collective("a thread that sends has failed".into()));
                sent = sent.and(thread.and_then(|sent| sent));
            }
            let received = received?;
            sent.map(|()| received)
        })
    }
}

impl Peer {
    fn send(&self, kind: Kind, operation: u64, bytes: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[0] = kind as u8;
        header[1..9].copy_from_slice(&operation.to_le_bytes());
        header[9..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let mut stream = &self.stream;
        stream.write_all(&header)?;
        stream.write_all(bytes)
    }

    /// Reads a frame's beginning: how many bytes come after it.
    fn length(&self, rank: usize, kind: Kind, operation: u64) -> Result<usize> {
        let mut header = [0; HEADER];
        self.fill(rank, &mut header)?;
        let number =
            |at: usize| header[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let found = (Kind::of(header[0]), number(1));
        if found != (Some(kind), operation) {
            return Err(Error::Collective(format!(
                "rank {rank} ({}) sent {:?} of operation {}, expected {kind:?} of operation {operation}",
                self.address, found.0, found.1
            )));
        }
        Ok(number(9) as usize)
    }

    /// Sends a tensor from where it lies.
    fn send_tensor(&self, rank: usize, kind: Kind, operation: u64, tensor: &dyn Tensor) -> Result<()> {
        let mut sent = Ok(());
        tensor.read(&mut |values| sent = self.send(kind, operation, bytemuck::cast_slice(values)));
        sent.map_err(gone(rank, &self.address))
    }

    /// Reads the beginning of a frame whose length is known.
    fn expect(&self, rank: usize, kind: Kind, operation: u64, bytes: usize) -> Result<()> {
        let length = self.length(rank, kind, operation)?;
        if length == bytes {
            return Ok(());
        }
        Err(Error::Collective(format!(
            "rank {rank} ({}) sent {length} bytes of {kind:?}, expected {bytes}",
            self.address
        )))
    }

    /// Reads a frame whose length is known.
    fn receive(&self, rank: usize, kind: Kind, operation: u64, bytes: &mut [u8]) -> Result<()> {
        self.expect(rank, kind, operation, bytes.len())?;
        self.fill(rank, bytes)
    }

    fn fill(&self, rank: usize, bytes: &mut [u8]) -> Result<()> {
        (&self.stream).read_exact(bytes).map_err(gone(rank, &self.address))
    }
}

/// A connection on which tensors are sent: frames go at once, reads wait as long as the other one works, and a machine
/// that is gone is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(SILENCE / 2).with_interval(SILENCE / 6);
    #[cfg(target_os = "linux")]
    let keepalive = keepalive.with_retries(3);
    let socket = SockRef::from(stream);
    // The same for what is sent and not received.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
const PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
fn seat(rank: usize, world_size: usize, master: &str) -> Seat {
    Seat { rank, world_size, master: master.to_owned(), token: "a tuning's".to_owned() }
}

/// What each rank of a world makes of its mesh, in a thread each: for tests.
#[cfg(test)]
pub(crate) fn world<T: Send>(world_size: usize, work: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = listener.local_addr().unwrap().to_string();
    thread::scope(|scope| {
        let (work, master, listener) = (&work, &master, &listener);
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn(move || {
                    let seat = seat(rank, world_size, master);
                    let mesh = match rank {
                        0 => Mesh::lead(&seat, listener, PATIENCE, &mut |_| Ok(())),
                        _ => Mesh::meet(&seat, PATIENCE, &mut |_| Ok(())),
                    };
                    work(mesh.unwrap())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::deal;

    fn boxed(tensors: &mut [Vec<f32>]) -> Vec<Box<dyn Tensor + '_>> {
        tensors.iter_mut().map(|tensor| Box::new(tensor) as Box<dyn Tensor>).collect()
    }

    #[test]
    fn sums_come_to_all_and_those_of_tensors_to_their_owners() {
        // The second is larger than what the system takes before somebody reads it.
        let lengths = [3, 5_000_000, 0, 70_000, 1];
        for world_size in 1..=4 {
            let owners = deal(&lengths, world_size);
            let of_rank = |rank: usize, tensor: usize| vec![(rank + 10 * tensor) as f32; lengths[tensor]];
            let found = world(world_size, |mesh| {
                let mut numbers = [1.0, mesh.rank() as f64];
                mesh.sum(&mut numbers).unwrap();
                let mut bytes = vec![mesh.rank() as u8; 300_000 * (mesh.rank() + 1)];
                mesh.broadcast(&mut bytes).unwrap();
                assert!(bytes == vec![0; 300_000]);
                let tensors: Vec<Vec<f32>> =
                    (0..lengths.len()).map(|tensor| of_rank(mesh.rank(), tensor)).collect();
                let mut reduced = tensors.clone();
                mesh.reduce(&owners, boxed(&mut reduced)).unwrap();
                let ranks = |tensor: usize| (0..world_size).map(|rank| rank + 10 * tensor).sum::<usize>();
                let whole = |tensor: usize| vec![ranks(tensor) as f32; lengths[tensor]];
                for (tensor, found) in reduced.iter().enumerate() {
                    let own = owners[tensor] == mesh.rank();
                    assert!(*found == if own { whole(tensor) } else { tensors[tensor].clone() });
                }
                for receivers in [Receivers::First, Receivers::All] {
                    mesh.gather(&owners, boxed(&mut reduced), receivers).unwrap();
                    if receivers.include(mesh.rank()) {
                        assert!(reduced.iter().enumerate().all(|(tensor, found)| *found == whole(tensor)));
                    }
                }
                assert_eq!(mesh.on_this_machine(), world_size);
                numbers
            });
            let ranks = (0..world_size).sum::<usize>() as f64;
            assert!(found.iter().all(|numbers| *numbers == [world_size as f64, ranks]));
        }
    }

    #[test]
    fn a_rank_that_goes_away_is_named_to_all_and_nobody_waits() {
        let owners = [0, 1, 2];
        let found = world(3, |mesh| {
            if mesh.rank() == 1 {
                return None;
            }
            // More than fits between two ranks, so that they would wait for each other.
            let mut tensors = vec![vec![0.0; 4_000_000]; 3];
            mesh.reduce(&owners, boxed(&mut tensors)).err().map(|error| error.to_string())
        });
        let told: Vec<&String> = found.iter().flatten().collect();
        assert_eq!(told.len(), 2);
        assert!(told.iter().any(|told| told.starts_with("rank 1 (127.0.0.1:")), "{told:?}");
    }

    #[test]
    fn ranks_that_do_different_things_find_out() {
        let found = world(2, |mesh| match mesh.rank() {
            0 => mesh.sum(&mut [0.0]),
            _ => mesh.broadcast(&mut Vec::new()),
        });
        let told = found[1].as_ref().unwrap_err().to_string();
        assert!(told.contains("sent Some(Numbers) of operation 0, expected Bytes of operation 0"), "{told}");
    }

    /// What rank 0 of a world of two says when somebody else than rank 1 comes.
    fn refused(come: impl FnOnce(&str) + Send) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let master = listener.local_addr().unwrap().to_string();
        thread::scope(|scope| {
            scope.spawn(|| come(&master));
            let patience = Duration::from_millis(500);
            let met = Mesh::lead(&seat(0, 2, &master), &listener, patience, &mut |_| Ok(()));
            let told = met.err().map(|error| error.to_string()).unwrap_or_default();
            drop(listener);
            told
        })
    }

    #[test]
    fn strangers_are_sent_away_and_wrong_ranks_are_named() {
        let patience = Duration::from_millis(300);
        let join = |seat: Seat| drop(Mesh::meet(&seat, patience, &mut |_| Ok(())));
        let stranger = |text: &'static [u8]| {
            move |master: &str| TcpStream::connect(master).unwrap().write_all(text).unwrap()
        };
        for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"polypaca-ra1\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(refused(stranger(text)), "ranks [1] of a world of 2 did not come within 0 s");
        }
        let other = refused(|master| join(Seat { token: "another's".into(), ..seat(1, 2, master) }));
        assert!(other.starts_with("ranks [1]"), "{other}");
        let larger = refused(|master| join(seat(1, 3, master)));
        assert!(larger.ends_with("expects a world of 3, this one of 2"), "{larger}");
        let missing = Mesh::meet(&seat(2, 2, "127.0.0.1:1"), patience, &mut |_| Ok(())).err().unwrap();
        assert_eq!(missing.to_string(), "rank 2 of a world of 2: expected a rank from 0 to 1");
        let nobody = Mesh::meet(&seat(1, 2, "127.0.0.1:1"), patience, &mut |_| Ok(())).err().unwrap();
        assert!(nobody.to_string().starts_with("127.0.0.1:1: rank 0 was not found there"), "{nobody}");
    }
}
