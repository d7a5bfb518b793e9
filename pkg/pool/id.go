package pool

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// A volume's id is its pool's name, the hash of its name and its incarnation:
//
//	default-6b86b273ff34fce19d6b804eff5a3f57-4e07408562bedb8b
//
// The hash finds the record without an index. The incarnation, new with every
// creation, keeps a late call for a deleted volume off its successor of the
// same name.
const (
	maxPoolName  = 32
	hashLen      = 16 // bytes
	incarnLen    = 8  // bytes
	idTail       = 1 + 2*hashLen + 1 + 2*incarnLen
	maxIDLen     = maxPoolName + idTail
	firstVolLock = 16 // locks below are the pool's own
)

// hash is the first half of the SHA-256 of a name. Records also keep the name,
// so that two names of one hash would be refused, not confused.
type hash [hashLen]byte

func hashOf(name string) hash {
	sum := sha256.Sum256([]byte(name))
	return hash(sum[:hashLen])
}

func (h hash) String() string { return hex.EncodeToString(h[:]) }

// shard is the directory below volumes/ or nodes/ that holds the record.
func (h hash) shard() string { return hex.EncodeToString(h[:1]) }

// lock is where in the lock file the lock of the name is.
func (h hash) lock() int64 {
	return int64(binary.BigEndian.Uint64(h[:8])>>2) + firstVolLock
}

// incarnation tells the volumes that had one name one after another apart.
type incarnation [incarnLen]byte

func newIncarnation() (i incarnation) {
	rand.Read(i[:]) // never fails
	return i
}

func (i incarnation) String() string { return hex.EncodeToString(i[:]) }

// volumeID is the parsed form of a volume's id.
type volumeID struct {
	pool string
	hash hash
	inc  incarnation
}

func (v volumeID) String() string { return v.pool + "-" + v.hash.String() + "-" + v.inc.String() }

// parseID takes only what String makes. Whatever else it is given is some other
// driver's id or a typing error: ErrNotFound.
func parseID(s string) (volumeID, error) {
	var v volumeID
	n := len(s) - idTail
	if n < 1 || len(s) > maxIDLen || s[n] != '-' || s[len(s)-2*incarnLen-1] != '-' {
		return v, fmt.Errorf("volume %.128q: %w", s, ErrNotFound)
	}
	v.pool = s[:n]
	if !validPoolName(v.pool) || !decodeHex(v.hash[:], s[n+1:]) || !decodeHex(v.inc[:], s[len(s)-2*incarnLen:]) {
		return volumeID{}, fmt.Errorf("volume %.128q: %w", s, ErrNotFound)
	}
	return v, nil
}

// decodeHex fills dst from the lower-case hex that s begins with.
func decodeHex(dst []byte, s string) bool {
	s = s[:2*len(dst)]
	for _, c := range []byte(s) {
		if c >= 'A' && c <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// parseHash takes exactly what hash.String makes.
func parseHash(s string) (h hash, ok bool) {
	ok = len(s) == 2*hashLen && decodeHex(h[:], s)
	return h, ok
}

func parseIncarnation(s string) (i incarnation, ok bool) {
	ok = len(s) == 2*incarnLen && decodeHex(i[:], s)
	return i, ok
}

func validPoolName(s string) bool {
	if s == "" || len(s) > maxPoolName {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
}
