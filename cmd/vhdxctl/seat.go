package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// seat is where detach finds the server of an image: a socket to ask it, and a
// file that says what it serves, in a directory that only root may use. Who
// has the image's lock may take it.
type seat struct {
	name     string // without suffix
	path     string // of the image
	listener net.Listener
	state    attachedResult
	// requests to detach; each is answered by calling it.
	requests chan func(error)
}

// attachedResult is what attach prints as JSON.
type attachedResult struct {
	Image    string `json:"image"`
	Device   string `json:"device"`
	ReadOnly bool   `json:"readOnly"`
	PID      int    `json:"pid"`
}

// seatName is the same for all names of an image.
func seatName(dir, path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(dir, hex.EncodeToString(sum[:8]))
}

func takeSeat(dir, path string) (*seat, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &seat{name: seatName(dir, path), path: path, requests: make(chan func(error))}
	if err := os.Remove(s.name + ".sock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var err error
	if s.listener, err = net.Listen("unix", s.name+".sock"); err != nil {
		return nil, err
	}
	go s.listen()
	return s, nil
}

// id is what the device of the image is known by.
func (s *seat) id() string { return idOf(s.name) }

func idOf(name string) string { return "vhdxctl-" + filepath.Base(name) }

// publish says what is served.
func (s *seat) publish(r attachedResult) error {
	s.state = r
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	d, err := vhdx.NewDraft(s.name + ".json")
	if err != nil {
		return err
	}
	_, err = d.File().Write(data)
	if err == nil {
		err = d.Publish(true)
	}
	return errors.Join(err, d.Close())
}

func (s *seat) close() {
	_ = s.listener.Close() // removes the socket
	_ = os.Remove(s.name + ".json")
}

// listen passes requests to the server, one after the other.
func (s *seat) listen() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		answered := make(chan struct{})
		s.requests <- func(err error) {
			defer close(answered)
			a := answer{Busy: errors.Is(err, blockdev.ErrBusy)}
			if err != nil {
				a.Error = err.Error()
			}
			_ = json.NewEncoder(conn).Encode(a) // whoever asked has gone
			_ = conn.Close()
		}
		<-answered
	}
}

// patience is how long a server may take to write what is dirty.
const patience = 6 * time.Minute

var errNoServer = errors.New("its server is no more")

// answer is what a server says to a request to detach.
type answer struct {
	Error string
	Busy  bool
}

// ask has a server detach its device.
func ask(name string) error {
	conn, err := net.Dial("unix", name+".sock")
	if err != nil {
		return fmt.Errorf("%w: %w", errNoServer, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var a answer
	err = json.NewDecoder(bufio.NewReader(conn)).Decode(&a)
	switch {
	case err != nil:
		return fmt.Errorf("ask the server: %w", err)
	case a.Busy:
		return fmt.Errorf("%w: %s", blockdev.ErrBusy, a.Error)
	case a.Error != "":
		return errors.New(a.Error)
	}
	return nil
}

// seats lists what is attached, by name of the seat.
func seats(dir string) (map[string]attachedResult, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[string]attachedResult{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		name = filepath.Join(dir, name)
		data, err := os.ReadFile(name + ".json")
		var r attachedResult
		if err == nil && json.Unmarshal(data, &r) == nil {
			found[name] = r
		}
	}
	return found, nil
}
