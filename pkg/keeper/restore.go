package keeper

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstListenFD is where systemd puts the descriptors that it passes.
const firstListenFD = 3

// inherited is a descriptor that systemd has passed.
type inherited struct {
	name string
	fd   int
}

// listenFDs takes the descriptors from systemd, once.
func listenFDs() []inherited {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	n, err := strconv.Atoi(count)
	if pid != strconv.Itoa(os.Getpid()) || err != nil {
		return nil
	}
	named := strings.Split(names, ":")
	var out []inherited
	for i := range n {
		fd := firstListenFD + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			break // systemd would not count one that is not there
		}
		f := inherited{fd: fd}
		if i < len(named) {
			f.name = named[i]
		}
		out = append(out, f)
	}
	return out
}

// restore makes items of what systemd has kept. What belongs to none is closed.
func (h *shelf) restore(list []inherited) {
	byName := map[string]int{}
	var records []inherited
	for _, f := range list {
		if strings.HasPrefix(f.name, recordName) {
			records = append(records, f)
			h.records = max(h.records, serialIn(f.name, recordName))
			continue
		}
		if _, twice := byName[f.name]; twice || !strings.HasPrefix(f.name, fileName) {
			h.note(fmt.Sprintf("closed a descriptor that systemd passed: %q is no item's", f.name))
			closeAll([]int{f.fd})
			continue
		}
		byName[f.name] = f.fd
		h.store.serial = max(h.store.serial, serialIn(f.name, fileName))
	}
	// The newest record of an item was sent last.
	slices.SortFunc(records, func(a, b inherited) int {
		return int(serialIn(b.name, recordName)) - int(serialIn(a.name, recordName))
	})
	for _, f := range records {
		if err := h.restoreItem(f, byName); err != nil {
			h.note(fmt.Sprintf("%s of systemd's descriptor store: %v", f.name, err))
		}
		closeAll([]int{f.fd})
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		h.note(fmt.Sprintf("closed a descriptor that systemd passed: %s is no item's", name))
		closeAll([]int{byName[name]})
	}
}

func serialIn(name, prefix string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(name, prefix), 10, 62)
	return n
}

// restoreItem takes an item's files from byName.
func (h *shelf) restoreItem(f inherited, byName map[string]int) error {
	r, err := readRecord(f.fd)
	if err != nil {
		return err
	}
	var files []int
	for _, name := range r.Files {
		fd, ok := byName[name]
		if !ok || len(files) == MaxFiles || slices.Contains(files, fd) {
			return fmt.Errorf("volume %s, generation %d: %s is not there", r.ID, r.Generation, name)
		}
		files = append(files, fd)
	}
	if len(r.ID) > MaxID || len(r.Meta) > MaxMeta {
		return fmt.Errorf("id of %d, meta of %d bytes", len(r.ID), len(r.Meta))
	}
	if ref := h.store.put(r.ID, r.Generation, r.Meta, files); ref != nil {
		return fmt.Errorf("volume %s, generation %d: %w", r.ID, r.Generation, ref)
	}
	for i, name := range r.Files {
		delete(byName, name)
		h.store.items[r.ID].files[i].serial = serialIn(name, fileName)
	}
	h.shelved[r.ID] = shelved{record: f.name, files: r.Files}
	return nil
}

func readRecord(fd int) (record, error) {
	b := make([]byte, maxRecord)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	var r record
	if err := json.Unmarshal(b[:n], &r); err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	return r, nil
}
