package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	entryVersion = 1
	// maxEntry bounds a journal file, and so the number of targets.
	maxEntry = 1 << 20
	// maxID is the longest volume id. CSI allows 128 bytes.
	maxID   = 256
	maxPath = 4096
)

// entry is what the journal holds for a volume.
type entry struct {
	Version  int    `json:"version"`
	Volume   string `json:"volume"`
	Node     string `json:"node"`
	Boot     string `json:"boot"` // the boot in which it was made
	Block    bool   `json:"block,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	FSType   string `json:"fsType,omitempty"`
	// MountFlags of the staging mount, one option each.
	MountFlags []string `json:"mountFlags,omitempty"`
	// Device is set once there is one.
	Device  *deviceID `json:"device,omitempty"`
	Staging []string  `json:"staging"`
	Targets []target  `json:"targets,omitempty"`
	// Staged: a call of Stage has come to its end. What died before that has
	// been promised to nobody, and is torn down.
	Staged bool `json:"staged,omitempty"`
	// Frozen: the filesystem is, or is about to be, frozen by this plugin.
	Frozen bool `json:"frozen,omitempty"`
}

// deviceID is how mounts are proven to be a volume's (I-NODE-8).
type deviceID struct {
	Path  string `json:"path"` // for messages and tools
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// target is one place a volume is published at.
type target struct {
	Path         string   `json:"path"`
	Staging      string   `json:"staging"`
	ReadOnly     bool     `json:"readOnly,omitempty"`
	MountFlags   []string `json:"mountFlags,omitempty"`
	SingleWriter bool     `json:"singleWriter,omitempty"`
}

func (t target) equal(u target) bool {
	return t.Path == u.Path && t.Staging == u.Staging && t.ReadOnly == u.ReadOnly &&
		t.SingleWriter == u.SingleWriter && slices.Equal(t.MountFlags, u.MountFlags)
}

// clone gives a copy that shares nothing that changes.
func (e entry) clone() entry {
	e.Staging = slices.Clone(e.Staging)
	e.Targets = slices.Clone(e.Targets)
	return e
}

func (e entry) target(path string) (target, bool) {
	i := slices.IndexFunc(e.Targets, func(t target) bool { return t.Path == path })
	if i < 0 {
		return target{}, false
	}
	return e.Targets[i], true
}

func (e entry) withTarget(t target) entry {
	e = e.withoutTarget(t.Path)
	e.Targets = append(e.Targets, t)
	return e
}

func (e entry) withoutTarget(path string) entry {
	e = e.clone()
	e.Targets = slices.DeleteFunc(e.Targets, func(t target) bool { return t.Path == path })
	return e
}

func (e entry) withStaging(path string) entry {
	e = e.clone()
	e.Staging = append(e.Staging, path)
	return e
}

func (e entry) withoutStaging(path string) entry {
	e = e.clone()
	e.Staging = slices.DeleteFunc(e.Staging, func(s string) bool { return s == path })
	return e
}

// entryName is the journal's file name for a volume: ids may be as long as a
// file name can be, and hold any character.
func entryName(volumeID string) string {
	sum := sha256.Sum256([]byte(volumeID))
	return hex.EncodeToString(sum[:]) + ".json"
}

func (e entry) encode() ([]byte, error) {
	b, err := json.MarshalIndent(e, "", "\t")
	if err != nil {
		return nil, fmt.Errorf("encode journal entry: %w", err)
	}
	b = append(b, '\n')
	// What is read back at the next start must be this very entry.
	if _, err := decodeEntry(entryName(e.Volume), b); err != nil {
		return nil, fmt.Errorf("encode journal entry: %w", err)
	}
	return b, nil
}

// decodeEntry reads a journal file. Whatever an honest entry cannot be is an
// error: the file may have been damaged, and its paths are unmounted by root.
func decodeEntry(name string, b []byte) (entry, error) {
	var e entry
	if len(b) > maxEntry {
		return entry{}, fmt.Errorf("longer than %d bytes", maxEntry)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return entry{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return entry{}, fmt.Errorf("more than one value, the second at offset %#x", d.InputOffset())
	}
	if e.Version != entryVersion {
		return entry{}, fmt.Errorf("version %d, want %d", e.Version, entryVersion)
	}
	if err := checkID(e.Volume); err != nil {
		return entry{}, err
	}
	if want := entryName(e.Volume); name != want {
		return entry{}, fmt.Errorf("of volume %q, whose file is %s", e.Volume, want)
	}
	return e, e.checkPaths()
}

func (e entry) checkPaths() error {
	if e.Boot == "" || len(e.Staging) == 0 {
		return errors.New("no boot id or no staging path")
	}
	for _, p := range e.Staging {
		if err := checkPath(p); err != nil {
			return err
		}
	}
	for _, t := range e.Targets {
		if err := errors.Join(checkPath(t.Path), checkPath(t.Staging)); err != nil {
			return err
		}
	}
	if d := e.Device; d != nil && !strings.HasPrefix(d.Path, "/dev/") {
		return fmt.Errorf("device %q is not below /dev", d.Path)
	}
	return nil
}

func checkID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%w: no volume id", ErrInvalid)
	case len(id) > maxID:
		return fmt.Errorf("%w: volume id of %d bytes, %d at most", ErrInvalid, len(id), maxID)
	case !utf8.ValidString(id):
		// JSON would not give back the same id.
		return fmt.Errorf("%w: volume id %q is not UTF-8", ErrInvalid, id)
	}
	return nil
}

// cleanPath brings a caller's path into the form in which it is recorded and
// found in the mount table.
func cleanPath(p string) (string, error) {
	if filepath.IsAbs(p) {
		p = filepath.Clean(p)
	}
	if err := checkPath(p); err != nil {
		return "", err
	}
	return realPath(p), nil
}

func checkPath(p string) error {
	switch {
	case !filepath.IsAbs(p):
		return fmt.Errorf("%w: path %q is not absolute", ErrInvalid, p)
	case p != filepath.Clean(p) || p == "/":
		return fmt.Errorf("%w: path %q", ErrInvalid, p)
	case len(p) >= maxPath || strings.ContainsRune(p, 0) || !utf8.ValidString(p):
		return fmt.Errorf("%w: path %q is too long or no text", ErrInvalid, p)
	}
	return nil
}
