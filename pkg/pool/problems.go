package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// maxProblems bounds what Problems reports of a pool.
const maxProblems = 1000

// survey is one look at all of a pool. It changes nothing.
type survey struct {
	p      *Pool
	found  []Problem
	images map[string]bool // that a record or an unfinished operation names; true: seen
	sum    int64
}

func (p *Pool) problems(ctx context.Context) []Problem {
	s := &survey{p: p, images: map[string]bool{}}
	if p.unsafe != nil {
		s.add(".", "opened although it is unsafe: %v", p.unsafe)
	}
	before := s.account()
	s.top()
	for _, look := range []struct {
		dir   string
		entry func(ctx context.Context, d *fsx.Dir, shard, name string)
	}{
		{dirVolumes, s.volumeEntry}, {dirRetired, s.retiredEntry}, {dirNodes, s.nodeEntry}, {dirImages, s.imageEntry},
		{dirLeases, s.leaseEntry}, {dirSnapshots, s.snapshotEntry(dirSnapshots)}, {dirCuts, s.snapshotEntry(dirCuts)},
		{dirGroups, s.groupEntry},
	} {
		s.shards(ctx, look.dir, look.entry)
	}
	s.controllers()
	s.missingImages(ctx)
	s.temporary()
	s.compare(before)
	if len(s.found) >= maxProblems {
		s.found = append(s.found, Problem{p.name, ".", fmt.Sprintf("more than %d problems; the rest is not listed", maxProblems)})
	}
	return s.found
}

func (s *survey) add(name, format string, args ...any) {
	if len(s.found) < maxProblems {
		s.found = append(s.found, Problem{Pool: s.p.name, Path: name, Reason: fmt.Sprintf(format, args...)})
	}
}

// account reads the account, reports it where it is damaged, and notes the
// images of unfinished operations as known.
func (s *survey) account() *account {
	a, err := s.p.readAccount()
	if err != nil {
		if _, lerr := s.p.tree.Read(fileAccount, maxAccount); !errors.Is(lerr, fs.ErrNotExist) {
			s.add(fileAccount, "%v; it is made anew from the records by the next operation", err)
		}
		return nil
	}
	for _, o := range a.Operations {
		for _, image := range o.images() {
			s.images[image] = true
		}
	}
	return a
}

// top looks at the pool's directory itself.
func (s *survey) top() {
	d, err := s.p.tree.Dir(".")
	if err != nil {
		s.add(".", "%v", err)
		return
	}
	entries, err := d.Entries()
	if err != nil {
		s.add(".", "%v", err)
		return
	}
	files := []string{fileMarker, fileAccount, fileLocks, fileBallast}
	for _, e := range entries {
		name := e.Name()
		switch {
		case slices.Contains(directories, name):
			if !e.IsDir() {
				s.add(name, "a %s where a directory belongs", fsx.KindOf(e.Type()))
			}
		case slices.Contains(files, name):
			if !e.Type().IsRegular() {
				s.add(name, "a %s where a regular file belongs", fsx.KindOf(e.Type()))
			}
		case !ignorable(name):
			s.add(name, "a foreign %s", fsx.KindOf(e.Type()))
		}
	}
	if _, err := s.p.marker(); err != nil {
		s.add(fileMarker, "%v", err)
	}
}

// shards looks at each entry of each shard of a directory.
func (s *survey) shards(ctx context.Context, dir string, entry func(context.Context, *fsx.Dir, string, string)) {
	for _, shard := range s.entries(dir) {
		name := path.Join(dir, shard.Name())
		if !isShard(shard.Name()) || !shard.IsDir() {
			s.add(name, "a foreign %s", fsx.KindOf(shard.Type()))
			continue
		}
		d, err := s.p.tree.Dir(name)
		if err != nil {
			s.add(name, "%v", err)
			continue
		}
		for _, e := range s.entries(name) {
			if ctx.Err() != nil || len(s.found) >= maxProblems {
				break
			}
			if !e.Type().IsRegular() {
				s.add(path.Join(name, e.Name()), "a foreign %s", fsx.KindOf(e.Type()))
				continue
			}
			entry(ctx, d, name, e.Name())
		}
		d.Close()
	}
}

func (s *survey) entries(dir string) []fs.DirEntry {
	d, err := s.p.tree.Dir(dir)
	if err != nil {
		s.add(dir, "%v", err)
		return nil
	}
	defer d.Close()
	entries, err := d.Entries()
	if err != nil {
		s.add(dir, "%v", err)
	}
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), ".nfs") })
}

// record reads the record that a file name of a shard promises.
func (s *survey) record(d *fsx.Dir, shard, name string, decode func(b []byte, h hash) error) {
	full := path.Join(shard, name)
	base, ok := strings.CutSuffix(name, ".json")
	h, isHash := parseHash(base)
	if !ok || !isHash || h.shard() != path.Base(shard) {
		s.add(full, "a foreign file: no record has that name")
		return
	}
	b, err := d.Read(name, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return // removed since
	}
	if err == nil {
		err = decode(b, h)
	}
	if err != nil {
		s.add(full, "%v", err)
	}
}

// unendedImport is the problem of a volume whose files may have their old names yet.
const unendedImport = "its import has not ended; if nobody is at it, run it again"

func (s *survey) volumeEntry(_ context.Context, d *fsx.Dir, shard, name string) {
	s.record(d, shard, name, func(b []byte, h hash) error {
		r, err := decodeRecord(b, s.p.name, h)
		if err != nil {
			return err
		}
		if r.Import != nil {
			s.add(path.Join(shard, name), "%s", unendedImport)
		}
		return s.names(r)
	})
}

func (s *survey) retiredEntry(_ context.Context, d *fsx.Dir, shard, name string) {
	s.record(d, shard, name, func(b []byte, h hash) error {
		r, err := decodeRetired(b, s.p.name, h)
		if err != nil {
			return err
		}
		return s.names(r)
	})
}

// names notes what a record counts and which images it names.
func (s *survey) names(r *record) error {
	s.sum += r.Committed
	names := []string{r.Image}
	for _, l := range r.layers() {
		names = append(names, l.Image)
	}
	for _, image := range names {
		if image == "" {
			continue
		}
		if _, dup := s.images[image]; dup && !s.images[image] {
			return fmt.Errorf("%w: another record has the same image %s", ErrDamaged, image)
		}
		if !s.images[image] {
			s.images[image] = r.Deleting // a deleted image may be missing
		}
	}
	return nil
}

func (s *survey) snapshotEntry(dir string) func(context.Context, *fsx.Dir, string, string) {
	return func(_ context.Context, d *fsx.Dir, shard, name string) {
		s.record(d, shard, name, func(b []byte, h hash) error {
			_, err := decodeSnapshot(b, s.p.name, dir, h)
			return err
		})
	}
}

func (s *survey) nodeEntry(_ context.Context, d *fsx.Dir, shard, name string) {
	s.record(d, shard, name, func(b []byte, h hash) error {
		n, _, err := decodeNode(b)
		if err == nil && hashOf(n.ID) != h {
			err = fmt.Errorf("%w: it is of node %.256q and belongs under %s", ErrDamaged, n.ID, hashOf(n.ID))
		}
		return err
	})
}

func (s *survey) imageEntry(ctx context.Context, _ *fsx.Dir, shard, name string) {
	full := path.Join(shard, name)
	image, ok := strings.CutSuffix(name, ".vhdx")
	if !ok || !validImage(image) || image[:2] != path.Base(shard) {
		s.add(full, "a foreign file: no image has that name")
		return
	}
	if _, known := s.images[image]; known {
		s.images[image] = true
		return
	}
	if s.nowKnown(ctx, image) {
		return
	}
	s.add(full, "an image that no record names; if no record is missing or damaged either, it can be moved away")
}

// nowKnown looks for an image that was made during the survey.
func (s *survey) nowKnown(ctx context.Context, image string) bool {
	f, err := s.p.claimImage(image)
	if err != nil || f == nil {
		return true // being built, or removed since
	}
	f.Close()
	found := false
	s.p.eachLineage(ctx, func(_ string, r *record, err error) error { //nolint:errcheck // then it is reported
		if err == nil && r.names(image) {
			found = true
			return errStop
		}
		return nil
	})
	return found
}

func (s *survey) leaseEntry(_ context.Context, _ *fsx.Dir, shard, name string) {
	if image, ok := strings.CutSuffix(name, ".json"); !ok || !validImage(image) || image[:2] != path.Base(shard) {
		s.add(path.Join(shard, name), "a foreign file: no lease has that name")
	}
}

func (s *survey) groupEntry(_ context.Context, d *fsx.Dir, shard, name string) {
	s.record(d, shard, name, func(b []byte, h hash) error {
		_, err := decodeGroup(b, s.p.name, h)
		return err
	})
}

func (s *survey) missingImages(ctx context.Context) {
	s.p.eachLineage(ctx, func(name string, r *record, err error) error { //nolint:errcheck // reported by the look at volumes
		if err != nil || r.Deleting {
			return nil
		}
		for _, l := range append(slices.Concat(r.Layers, r.Old), layer{Image: r.Image}) {
			if l.Image == "" || s.images[l.Image] {
				continue
			}
			f, err := s.p.tree.Open(imagePath(l.Image), 0, 0)
			if err != nil {
				s.add(name, "its image: %v", err)
				continue
			}
			f.Close()
		}
		return nil
	})
}

func (s *survey) temporary() {
	d, err := s.p.tree.Dir(dirTemp)
	if err != nil {
		return // reported by the look at the top
	}
	defer d.Close()
	for _, e := range s.entries(dirTemp) {
		name := path.Join(dirTemp, e.Name())
		fi, err := d.Lstat(e.Name())
		switch {
		case err != nil:
		case !isTemp(e.Name()) || !e.Type().IsRegular():
			s.add(name, "a foreign %s", fsx.KindOf(e.Type()))
		case time.Since(fi.ModTime()) > tempAge:
			s.add(name, "left by an interrupted operation; collected by itself, may be removed")
		}
	}
}

func isTemp(name string) bool { return strings.HasPrefix(name, fsx.TempPrefix) }

// compare holds the account against the records, if nothing accounted has
// happened meanwhile.
func (s *survey) compare(before *account) {
	after, err := s.p.readAccount()
	if before == nil || err != nil || len(before.Operations)+len(after.Operations) > 0 || before.Committed != after.Committed {
		return
	}
	if s.sum != before.Committed {
		s.add(fileAccount, "it says that %d bytes are committed, the records say %d; remove it to have it made anew", before.Committed, s.sum)
	}
}
