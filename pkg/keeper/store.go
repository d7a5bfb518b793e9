package keeper

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// store is what a keeper holds.
type store struct {
	maxItems, maxFiles int
	maxBytes           int64

	mu      sync.Mutex // guards all below
	ids     []string   // of items, sorted
	items   map[string]*holding
	files   int
	bytes   int64
	closing int    // descriptors whose close has not returned yet; they count
	serial  uint64 // the last one given
	ended   bool
	// changed is told, with mu held, that an item has come, changed or gone.
	changed func(id string)
}

// holding is an item. It never changes: a new one takes its place.
type holding struct {
	generation uint64
	meta       []byte
	files      []held
}

// held is one descriptor.
type held struct {
	fd     int
	device bool   // or a socket: closing the last one means something
	bytes  int64  // of a memfd
	serial uint64 // of the open file: kept when an item is replaced
}

// refusal is an answer that is no success.
type refusal struct {
	code       code
	generation uint64 // the one held, of codeStale
	text       string
}

func (r *refusal) Error() string { return r.text }

func refuse(c code, format string, args ...any) *refusal {
	return &refusal{code: c, text: fmt.Sprintf(format, args...)}
}

func newStore(o Options) *store {
	return &store{
		maxItems: o.MaxItems, maxFiles: o.MaxFiles, maxBytes: o.MaxBytes,
		items: map[string]*holding{}, changed: func(string) {},
	}
}

// put takes the descriptors over, unless it refuses.
func (s *store) put(id string, generation uint64, meta []byte, files []int) *refusal {
	if id == "" || generation == 0 {
		return refuse(codeInvalid, "an item needs an id and a generation")
	}
	h, r := examine(generation, meta, files)
	if r != nil {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.items[id]
	if old != nil && len(files) == 0 {
		h.files = old.files
	}
	if r := s.admit(id, old, h); r != nil {
		return r
	}
	s.number(h, old)
	if old == nil {
		i, _ := slices.BinarySearch(s.ids, id)
		s.ids = slices.Insert(s.ids, i, id)
	}
	s.items[id] = h
	s.count(h, 1)
	if old != nil {
		s.count(old, -1)
		if len(files) > 0 {
			s.dispose(old.files)
		}
	}
	s.changed(id)
	return nil
}

// admit judges whether h may take the place of old, which may be nil.
func (s *store) admit(id string, old, h *holding) *refusal {
	items, files, bytes := len(s.items)+1, s.files+s.closing+len(h.files), s.bytes+h.bytes()
	if old != nil {
		if h.generation <= old.generation {
			r := refuse(codeStale, "%d of %s, not newer than the %d held", h.generation, id, old.generation)
			r.generation = old.generation
			return r
		}
		if i, ok := old.lost(h); ok {
			return refuse(codeInvalid, "descriptor %d of %s would be closed by this replacement, and may end a device: drop generation %d first", i, id, old.generation)
		}
		items, files, bytes = len(s.items), files-len(old.files), bytes-old.bytes()
	}
	switch {
	case s.ended:
		return refuse(codeEnding, "")
	case items > s.maxItems:
		return refuse(codeFull, "%d items", s.maxItems)
	case files > s.maxFiles:
		return refuse(codeFull, "%d descriptors of %d", s.files+s.closing, s.maxFiles)
	case bytes > s.maxBytes:
		return refuse(codeFull, "%d bytes of memory of %d", s.bytes, s.maxBytes)
	}
	return nil
}

// get copies an item's descriptors for the caller.
func (s *store) get(id string) (*holding, []int, *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.items[id]
	if h == nil {
		return nil, nil, refuse(codeNotFound, "")
	}
	fds := make([]int, 0, len(h.files))
	for _, f := range h.files {
		fds = append(fds, f.fd)
	}
	files, err := duplicate(fds)
	if err != nil {
		return nil, nil, refuse(codeFull, "%v", err)
	}
	return h, files, nil
}

// next returns the first item after an id.
func (s *store) next(after string) (string, *holding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearch(s.ids, after)
	if found {
		i++
	}
	if i == len(s.ids) {
		return "", nil
	}
	return s.ids[i], s.items[s.ids[i]]
}

func (s *store) drop(id string, generation uint64) *refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.items[id]
	if h == nil {
		return refuse(codeNotFound, "")
	}
	if h.generation != generation {
		r := refuse(codeStale, "%d of %s, %d is held", generation, id, h.generation)
		r.generation = h.generation
		return r
	}
	i, _ := slices.BinarySearch(s.ids, id)
	s.ids = slices.Delete(s.ids, i, i+1)
	delete(s.items, id)
	s.count(h, -1)
	s.dispose(h.files)
	s.changed(id)
	return nil
}

// end refuses all that comes from now on, if nothing is held or nothing that
// is held counts.
func (s *store) end(force bool) *refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.items) > 0 && !force {
		return refuse(codeHolding, "%s", s.losses())
	}
	s.ended = true
	return nil
}

// maxNamed is how many volumes a message names.
const maxNamed = 8

// losses says what the keeper's end would cost.
func (s *store) losses() string {
	var b strings.Builder
	fmt.Fprintf(&b, "its end would cut off %d volumes and lose writes they were promised: ", len(s.items))
	b.WriteString(strings.Join(s.ids[:min(len(s.ids), maxNamed)], ", "))
	if more := len(s.ids) - maxNamed; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	b.WriteString("; unstage them first, or force it (vhdx-csi keeper stop --force)")
	return b.String()
}

// number gives the files of h their serials: those of old, where they are the same.
func (s *store) number(h, old *holding) {
	for i, f := range h.files {
		if f.serial = old.serialOf(f.fd); f.serial == 0 {
			s.serial++
			f.serial = s.serial
		}
		h.files[i] = f
	}
}

func (s *store) count(h *holding, sign int) {
	s.files += sign * len(h.files)
	s.bytes += int64(sign) * h.bytes()
}

// dispose closes descriptors without waiting for it (I-KEEP-8). They were
// counted when they were put, and count until they are closed.
func (s *store) dispose(files []held) {
	if len(files) == 0 {
		return
	}
	s.closing += len(files)
	go func() {
		for _, f := range files {
			_ = unix.Close(f.fd)
			s.mu.Lock()
			s.closing--
			s.mu.Unlock()
		}
	}()
}

// closeAll ends a keeper that was forced to. The kernel would do it as well.
func (s *store) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, h := range s.items {
		s.dispose(h.files)
	}
	s.items, s.ids, s.files, s.bytes = map[string]*holding{}, nil, 0, 0
}
