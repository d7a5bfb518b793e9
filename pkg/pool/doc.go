// Package pool keeps volumes as files in a directory that any number of
// controllers and nodes share. The share is the database: there is no other.
//
//	pool.json                      marker: format version, UUID, name
//	account.json                   sum of committed bytes, unfinished operations
//	locks                          empty; its byte ranges are the locks
//	ballast                        thrown off when the share is full
//	volumes/<xx>/<hash>.json       a volume's record; hash is that of its name
//	images/<xx>/<uuid>.vhdx        images
//	nodes/<xx>/<hash>.json         nodes, where to ask them and their certificates
//	controllers/<hash>.json        controllers' certificates; hash is the fingerprint's first half
//	leases/<xx>/<uuid>.json        who has an image open, for people
//	snapshots/<xx>/<hash>.json     snapshots: hash is that of the name
//	cuts/<xx>/<hash>.json          snapshots that pass, for clones
//	children/<xx>/<uuid>/<uuid>    an image of another volume that stands on an image
//	retired/<xx>/<hash>.json       deleted volumes whose layers are needed yet
//	groups/<xx>/<hash>.json        groups of snapshots
//	tmp/                           files before they get their name
//
// Invariants:
//
//	I-POOL-1  One live volume per name. Its record is linked under the hash of
//	          the name, which succeeds once; the lock of the name is only what
//	          keeps two creations from both building an image.
//	I-POOL-2  A record appears only after its image is complete and the image,
//	          its directory entry and the record itself are synced.
//	I-POOL-3  What is being built cannot be collected: its name's lock and its
//	          image's lock are held, and it cannot be committed once it has
//	          been collected (errSuperseded).
//	I-POOL-4  Nothing that holds data is removed because something else is
//	          missing or unreadable. An image is removed by the deletion of its
//	          record, or when the account names it as that of a creation whose
//	          record does not exist, nobody has it locked, and it is incomplete,
//	          blank, or has another name outside.
//	I-POOL-5  Deletion has two phases. A record that says deleting is no volume
//	          any more; its image goes before it does. Every step is durable
//	          before the next and can be repeated by anybody.
//	I-POOL-6  A volume id names one incarnation. No call with it touches
//	          another incarnation of the same name.
//	I-POOL-7  The account's sum is the sum of committed bytes over all records,
//	          deleting ones included, but for the operations it lists: a listed
//	          creation or growth is not in the sum, a listed deletion still is,
//	          whether or not the record already shows it.
//	I-POOL-8  Sum plus listed creations and growths never exceed what the
//	          policy allows at the time one is admitted, by any controller.
//	I-POOL-9  A file is replaced under a lock only while that lock is young
//	          (maxHold), or under the account's lock with the operation still
//	          listed there; so a process that slept through the loss of its
//	          lock changes nothing.
//	I-POOL-10 A file of a higher format version is refused. Fields of this
//	          version that this program does not know are kept.
//	I-POOL-11 A list shows every volume that exists from its first page to its
//	          last exactly once, in the order of pools and hashes.
//	I-POOL-12 No path leaves the directory, no symlink in it is followed, and
//	          nothing but a regular file is opened. Whatever else is there is
//	          named by Problems and harms nothing but itself.
//	I-POOL-13 No operation's work grows with the number of volumes, except
//	          Problems and the recount of a lost account.
//	I-POOL-14 A share that fails, hangs, is not there or cannot be written keeps
//	          no other pool closed. Nothing of its pool is taken for missing meanwhile.
//	I-POOL-15 One replacement of the volume's record takes a snapshot: before it
//	          there is none, after it the volume's image is a new child and the
//	          old one frozen. A snapshot's own record only reserves its name.
//	I-POOL-16 A frozen image is removed only when it is no snapshot, nothing
//	          stands on it, and nobody has it open. What stands on another
//	          volume's image has announced itself there before it exists.
//	I-POOL-17 A rebuild changes no frozen image. A volume moves to the new ones
//	          by the link of its own image and then by its record; either side
//	          of that reads the same.
//	I-POOL-18 A group of snapshots exists from one replacement of its record to
//	          another. Outside of that none of its snapshots does.
//	I-POOL-19 A delta names every byte by which two snapshots differ, and no
//	          sector that no layer between them holds or has given up.
//	I-POOL-20 What is said of bytes is what the files say. Committed: for each
//	          image that is written what it may take at most, for each frozen
//	          one what its file takes, which is also what its record and its
//	          snapshot say. Allocated: what all image files take. Pinned: what
//	          of that those take that are snapshots, or lie below one, or below
//	          an image of another volume.
//	I-POOL-21 An import changes nothing in a file before a record names it, and
//	          of a chain nothing but the path to each one's parent. No volume of
//	          which that is half done is opened. A file loses its old name only
//	          when its image has been linked to its parent and the record says so.
package pool
