//! How the ranks of a world find each other over TCP.
//!
//! They meet at rank 0's address. Each tells who it is and where it listens; rank 0 tells all of them where the others
//! are, and each then connects to those before it.
//!
//! Whoever reaches the port and knows the token can take a rank's place, and what is sent is not encrypted: this is for
//! the inside of a machine, or for a cluster's own network.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a connection of this program begins with; the last digit is the protocol's version.
const GREETING: [u8; 12] = *b"polypaca-ra1";

/// Bytes of a greeting's text: far more than a host's names take.
const LONGEST_TEXT: usize = 1 << 20;

/// How long a connection may take to be made, and then to say who it is: a stray one is dropped after it.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Between two looks for somebody new.
const PAUSE: Duration = Duration::from_millis(10);

/// A process's place in a world that meets over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// `HOST:PORT` at which rank 0 listens.
    pub master: String,
    /// What the others have to know to take part; may be empty.
    pub token: String,
}

/// How a rank introduces itself to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Introduction {
    rank: usize,
    world_size: usize,
    token: String,
    /// Where it listens for those after it.
    port: u16,
    /// The machine, as far as its system tells.
    machine: String,
}

/// Where a rank listens, as rank 0 sees it, and on which machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Whereabouts {
    pub(super) address: SocketAddr,
    machine: String,
}

/// Where rank 0 listens: at the address itself where it is a number, and at its port on all of the machine's addresses where
/// it is a name, which to the machine itself often is another address than to the others.
pub(super) fn listen(master: &str) -> Result<TcpListener> {
    let expected = || Error::Settings(format!("{master}: expected HOST:PORT of rank 0"));
    let (host, port) = master.rsplit_once(':').ok_or_else(expected)?;
    let port: u16 = port.parse().map_err(|_| expected())?;
    if host.is_empty() {
        return Err(expected());
    }
    let listener = match master.parse::<SocketAddr>() {
        Ok(address) => TcpListener::bind(address),
        Err(_) => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    };
    listener.map_err(at(master, "cannot listen there"))
}

/// Rank 0 lets the others in at `listener`, and tells all of them where the others are.
pub(super) fn lead(
    seat: &Seat,
    listener: &TcpListener,
    patience: Duration,
    waiting: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Met> {
    check(seat)?;
    let mut found = Meeting::new(seat, 1..seat.world_size);
    found.wait(listener, patience, waiting)?;
    let own = listener.local_addr().map_err(at(&seat.master, "has no address"))?;
    let mut roster = vec![Whereabouts { address: own, machine: machine() }];
    roster.extend(found.guests.iter().flatten().map(|guest| guest.place.clone()));
    let text = serde_json::to_vec(&roster).map_err(|error| Error::Collective(error.to_string()))?;
    for (rank, guest) in found.guests.iter().enumerate() {
        if let Some(Guest { stream, place }) = guest {
            write_text(stream, &text).map_err(gone(rank, &place.address))?;
        }
    }
    Ok(found.met(&roster))
}

/// Another rank goes to rank 0, hears where those before it are, goes to them, and lets in those after it.
pub(super) fn join(
    seat: &Seat,
    patience: Duration,
    waiting: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Met> {
    check(seat)?;
    let master = find_master(seat, patience, waiting)?;
    let here = master.local_addr().map_err(at(&seat.master, "has no address"))?;
    let any = SocketAddr::new(here.ip(), 0);
    let listener = TcpListener::bind(any).map_err(at(&any.to_string(), "cannot listen there"))?;
    let port = listener.local_addr().map_err(at(&any.to_string(), "has no address"))?.port();
    let introduction = Introduction {
        rank: seat.rank,
        world_size: seat.world_size,
        token: seat.token.clone(),
        port,
        machine: machine(),
    };
    introduce(&master, &introduction).map_err(gone(0, &seat.master))?;
    let roster = read_roster(seat, &master, Instant::now() + patience)?;
    let mut found = Meeting::new(seat, seat.rank + 1..seat.world_size);
    found.guests[0] = Some(Guest { stream: master, place: roster[0].clone() });
    for (rank, place) in roster.iter().enumerate().take(seat.rank).skip(1) {
        let stream = TcpStream::connect(place.address).map_err(gone(rank, &place.address))?;
        introduce(&stream, &introduction).map_err(gone(rank, &place.address))?;
        found.guests[rank] = Some(Guest { stream, place: place.clone() });
    }
    found.wait(&listener, patience, waiting)?;
    Ok(found.met(&roster))
}

/// A connection to rank 0, which may begin later than this one.
fn find_master(
    seat: &Seat,
    patience: Duration,
    waiting: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<TcpStream> {
    let until = Instant::now() + patience;
    let addresses = seat.master.to_socket_addrs();
    let addresses: Vec<SocketAddr> = addresses
        .map_err(|error| Error::Settings(format!("{}: expected HOST:PORT of rank 0: {error}", seat.master)))?
        .collect();
    loop {
        match connect(&addresses) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= until => {
                return Err(at(&seat.master, "rank 0 was not found there")(error));
            }
            Err(_) => {
                waiting(1)?;
                thread::sleep(PAUSE);
            }
        }
    }
}

/// Where all ranks are, as rank 0 tells when all have come.
fn read_roster(seat: &Seat, master: &TcpStream, until: Instant) -> Result<Vec<Whereabouts>> {
    let text = read_text(master, until).map_err(|error| {
        Error::Collective(format!("rank 0 ({}) did not let this one take part: {error}", seat.master))
    })?;
    let roster: Vec<Whereabouts> =
        serde_json::from_slice(&text).map_err(|error| Error::Collective(error.to_string()))?;
    if roster.len() != seat.world_size {
        return Err(Error::Collective(format!(
            "rank 0 knows {} ranks, expected {}",
            roster.len(),
            seat.world_size
        )));
    }
    Ok(roster)
}

/// Refuses a seat that no world has.
fn check(seat: &Seat) -> Result<()> {
    if seat.rank < seat.world_size {
        return Ok(());
    }
    Err(Error::Settings(format!(
        "rank {} of a world of {}: expected a rank from 0 to {}",
        seat.rank,
        seat.world_size,
        seat.world_size.saturating_sub(1)
    )))
}

/// All ranks but this one, connected.
pub(super) struct Met {
    /// By rank; none at this rank's own place.
    pub(super) guests: Vec<Option<Guest>>,
    /// Ranks on this machine, this one among them.
    pub(super) on_this_machine: usize,
}

/// Another rank.
pub(super) struct Guest {
    pub(super) stream: TcpStream,
    pub(super) place: Whereabouts,
}

/// Ranks that are waited for.
struct Meeting<'a> {
    seat: &'a Seat,
    expected: std::ops::Range<usize>,
    guests: Vec<Option<Guest>>,
}

impl<'a> Meeting<'a> {
    fn new(seat: &'a Seat, expected: std::ops::Range<usize>) -> Self {
        Self { seat, expected, guests: (0..seat.world_size).map(|_| None).collect() }
    }

    fn missing(&self) -> Vec<usize> {
        self.expected.clone().filter(|rank| self.guests[*rank].is_none()).collect()
    }

    /// Lets ranks in until all are there. A connection that is not this program's is dropped.
    fn wait(
        &mut self,
        listener: &TcpListener,
        patience: Duration,
        waiting: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        listener.set_nonblocking(true).map_err(at(&self.seat.master, "cannot listen there"))?;
        loop {
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::Collective(format!(
                    "ranks {missing:?} of a world of {} did not come within {} s",
                    self.seat.world_size,
                    patience.as_secs()
                )));
            }
            waiting(missing.len())?;
            match listener.accept() {
                Ok((stream, address)) => self.let_in(stream, address)?,
                Err(_) => {
                    self.look_after_guests()?;
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Gives up where somebody who came has gone again.
    fn look_after_guests(&self) -> Result<()> {
        for (rank, guest) in self.guests.iter().enumerate() {
            let Some(Guest { stream, place }) = guest else { continue };
            let gone = gone(rank, &place.address);
            stream.set_nonblocking(true).map_err(&gone)?;
            let found = stream.peek(&mut [0]);
            stream.set_nonblocking(false).map_err(&gone)?;
            match found {
                Ok(0) => return Err(gone(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(gone(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes a connection for the rank that it says it is.
    fn let_in(&mut self, stream: TcpStream, address: SocketAddr) -> Result<()> {
        let Some(introduction) = introduced(&stream) else {
            tracing::warn!("a connection from {address} did not say which rank it is, and was closed");
            return Ok(());
        };
        let Introduction { rank, world_size, .. } = introduction;
        if introduction.token != self.seat.token {
            tracing::warn!("rank {rank} from {address} belongs to another tuning, and was sent away");
            return Ok(());
        }
        if world_size != self.seat.world_size {
            return Err(Error::Settings(format!(
                "rank {rank} ({address}) expects a world of {world_size}, this one of {}",
                self.seat.world_size
            )));
        }
        if !self.expected.contains(&rank) || self.guests[rank].is_some() {
            return Err(Error::Settings(format!(
                "two processes say that they are rank {rank}; one is at {address}"
            )));
        }
        let address = SocketAddr::new(address.ip(), introduction.port);
        let place = Whereabouts { address, machine: introduction.machine };
        self.guests[rank] = Some(Guest { stream, place });
        Ok(())
    }

    /// The end of the meeting.
    fn met(self, roster: &[Whereabouts]) -> Met {
        let own = &roster[self.seat.rank].machine;
        // A system that does not tell: all are taken to be here, since memory is then shared at worst.
        let on_this_machine = roster.iter().filter(|place| place.machine == *own).count();
        Met { guests: self.guests, on_this_machine }
    }
}

/// A connection to the first of a machine's addresses that answers.
fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, INTRODUCTION) {
            // Where nobody listens, and the system chose the same port for this end, one is connected with oneself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn introduce(stream: &TcpStream, introduction: &Introduction) -> io::Result<()> {
    let mut stream = stream;
    stream.write_all(&GREETING)?;
    write_text(stream, &serde_json::to_vec(introduction)?)
}

/// Who is there; none if it does not say so in time, or as this program does.
fn introduced(stream: &TcpStream) -> Option<Introduction> {
    stream.set_nonblocking(false).ok()?;
    let until = Instant::now() + INTRODUCTION;
    let mut greeting = [0; GREETING.len()];
    read_until(stream, until, &mut greeting).ok()?;
    if greeting != GREETING {
        return None;
    }
    serde_json::from_slice(&read_text(stream, until).ok()?).ok()
}

/// Fills `bytes`, all of them before `until`.
fn read_until(mut stream: &TcpStream, until: Instant, bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => rest = &mut rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_text(mut stream: &TcpStream, text: &[u8]) -> io::Result<()> {
    stream.write_all(&(text.len() as u64).to_le_bytes())?;
    stream.write_all(text)
}

fn read_text(stream: &TcpStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    read_until(stream, until, &mut length)?;
    let length = u64::from_le_bytes(length) as usize;
    if length > LONGEST_TEXT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a text of {length} bytes")));
    }
    let mut text = vec![0; length];
    read_until(stream, until, &mut text)?;
    Ok(text)
}

/// What tells this machine from others; empty where the system does not say.
fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Names the address in a system's error.
pub(super) fn at<'a>(address: &'a str, what: &'a str) -> impl Fn(io::Error) -> Error + 'a {
    move |error| Error::Collective(format!("{address}: {what}: {error}"))
}

/// Names the rank in a system's error.
pub(super) fn gone(rank: usize, address: &impl ToString) -> impl Fn(io::Error) -> Error {
    let address = address.to_string();
    move |error| {
        let how = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        Error::Collective(format!("rank {rank} ({address}) is gone: {how}"))
    }
}
