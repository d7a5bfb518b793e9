package pool

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// The order of a list is that of the pools' names and then of the volumes' name
// hashes, which is that of the shards and of the files in them. A token names
// the last volume that was listed, so a page reads the shards it shows and no
// others, whatever has been made or removed since (I-POOL-11).

// position is the place in the list after which to go on.
type position struct {
	pool string
	hash string // "": from the pool's beginning
}

const tokenVersion = "1"

func (p position) token() string {
	s := tokenVersion + "/" + p.pool + "/" + p.hash
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf([]byte(s), "/%08x", crc32.ChecksumIEEE([]byte(s))))
}

func parseToken(t string) (position, error) {
	bad := fmt.Errorf("list token %.64q: %w", t, ErrBadToken)
	b, err := base64.RawURLEncoding.DecodeString(t)
	if err != nil || len(b) > 256 {
		return position{}, bad
	}
	f := strings.Split(string(b), "/")
	if len(f) != 4 || f[0] != tokenVersion || !validPoolName(f[1]) {
		return position{}, bad
	}
	if _, ok := parseHash(f[2]); !ok {
		return position{}, bad
	}
	if p := (position{pool: f[1], hash: f[2]}); p.token() == t {
		return p, nil
	}
	return position{}, bad
}

func pageSize(max int) int {
	if max <= 0 {
		return maxPage
	}
	return max
}

// page has each pool list what it has from where token says on, until there is
// more than fits, and returns the token for that. last is the hash of the last
// one that fn has listed of the pool, "" if there was none.
func (s *Set) page(token string, fn func(p *Pool, after string) (last string, more bool, err error)) (next string, err error) {
	var at position
	if token != "" {
		if at, err = parseToken(token); err != nil {
			return "", err
		}
		if !slices.Contains(s.names, at.pool) {
			return "", fmt.Errorf("list token: %w: its pool %s is not served here", ErrBadToken, at.pool)
		}
	}
	have, err := s.whole()
	if err != nil {
		return "", err
	}
	for _, p := range slices.SortedFunc(slices.Values(have), func(a, b *Pool) int { return cmp.Compare(a.name, b.name) }) {
		if p.name < at.pool {
			continue
		}
		after := ""
		if p.name == at.pool {
			after = at.hash
		}
		last, more, err := fn(p, after)
		if err != nil {
			return "", fmt.Errorf("pool %s: %w", p.name, err)
		}
		if last != "" {
			at = position{p.name, last}
		}
		if more {
			return at.token(), nil
		}
	}
	return "", nil
}

// list returns up to max live volumes after a name hash. more: there may be others.
func (p *Pool) list(ctx context.Context, after string, max int) (vols []Volume, last string, more bool, err error) {
	err = p.walk(ctx, dirVolumes, after, func(_ string, h hash, b []byte, err error) error {
		if len(vols) == max {
			more = true
			return errStop
		}
		if damaged(err) {
			return nil // Problems names it
		}
		if err != nil {
			return err
		}
		r, err := decodeRecord(b, p.name, h)
		if err != nil || r.Deleting {
			return nil
		}
		vols = append(vols, p.volume(r))
		last = h.String()
		return nil
	})
	return vols, last, more, err
}

// eachRecord reads every volume record. fn gets what is wrong with one.
func (p *Pool) eachRecord(ctx context.Context, fn func(name string, r *record, err error) error) error {
	return p.walk(ctx, dirVolumes, "", func(name string, h hash, b []byte, err error) error {
		var r *record
		if err == nil {
			r, err = decodeRecord(b, p.name, h)
		}
		return fn(name, r, err)
	})
}

// damaged: the file itself is at fault, not the way to it.
func damaged(err error) bool {
	return errors.Is(err, fsx.ErrForeign) || errors.Is(err, fsx.ErrTooLarge) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrFormat)
}

var errStop = errors.New("stop")

// walk reads the records of a sharded directory after a hash, in order. What
// is no shard or has no record's name is passed over.
func (p *Pool) walk(ctx context.Context, dir, after string, fn func(name string, h hash, b []byte, err error) error) error {
	top, err := p.tree.Dir(dir)
	if err != nil {
		return err
	}
	defer top.Close()
	shards, err := top.Names()
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if !isShard(shard) || shard < after[:min(2, len(after))] {
			continue
		}
		err := p.walkShard(ctx, path.Join(dir, shard), after, fn)
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil && !errors.Is(err, fsx.ErrForeign) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p *Pool) walkShard(ctx context.Context, dir, after string, fn func(string, hash, []byte, error) error) error {
	d, err := p.tree.Dir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		base, isRecord := strings.CutSuffix(name, ".json")
		h, ok := parseHash(base)
		if !isRecord || !ok || base <= after || h.shard() != path.Base(dir) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := d.Read(name, maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err := fn(path.Join(dir, name), h, b, err); err != nil {
			return err
		}
	}
	return nil
}

func isShard(name string) bool {
	var b [1]byte
	return len(name) == 2 && decodeHex(b[:], name)
}
