// Command workload is what the end-to-end tests run in their pods. It works on
// one file or raw device and tells over HTTP how it goes:
//
//	workload fill   PATH SIZE SEED   writes SIZE bytes that SEED decides, syncs, is ready
//	workload check  PATH SIZE SEED   reads them again past the page cache; anything else fails
//	workload churn  PATH SIZE SEED   writes without fsync and verifies past the page cache, until it is told to stop
//	workload ledger PATH SIZE SEED   appends records, each synced before it counts in Writes, until the pod ends
//	workload audit  PATH SIZE SEED   reads such a ledger again; Writes is its last record
//	workload hold   PATH SIZE SEED   does nothing
//
// GET /status gives a Status as JSON and 503 until the program is ready, which
// is what the readiness probe asks for. POST /reset forgets the longest gap.
// POST /write?at=OFFSET&size=N&generation=G writes there what SEED and G decide,
// and answers when it is on the disk.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// Status is what the tests ask for.
type Status struct {
	Ready    bool
	Sum      string        // of fill and check: SHA-256 of the content
	Writes   int64         // of churn, blocks
	Verified int64         // of churn, blocks
	Gap      time.Duration // longest single read or write since the last reset
	Size     int64         // of the filesystem or the device, now
	Error    string        // first failed I/O or wrong byte; the program stays
}

type reporter struct {
	mu sync.Mutex
	Status
}

func (r *reporter) update(f func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.Status)
}

// timed counts how long one I/O took.
func (r *reporter) timed(io func() error) error {
	began := time.Now()
	err := io()
	took := time.Since(began)
	r.update(func(s *Status) { s.Gap = max(s.Gap, took) })
	return err
}

// serve answers for ever.
func (w *worker) serve() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(out http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		s := w.Status
		w.mu.Unlock()
		s.Size = size(w.path)
		if !s.Ready {
			out.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(out).Encode(s)
	})
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { w.update(func(s *Status) { s.Gap = 0 }) })
	mux.HandleFunc("POST /write", func(out http.ResponseWriter, r *http.Request) {
		if err := w.put(r.FormValue("at"), r.FormValue("size"), r.FormValue("generation")); err != nil {
			http.Error(out, err.Error(), http.StatusInternalServerError)
		}
	})
	s := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(s.ListenAndServe())
}

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: workload fill|check|churn|ledger|audit|hold PATH SIZE SEED")
	}
	size, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err != nil || size <= 0 || size%blockSize != 0 {
		log.Fatalf("SIZE %s: give a multiple of %d", os.Args[3], blockSize)
	}
	seed, err := strconv.ParseUint(os.Args[4], 10, 64)
	if err != nil {
		log.Fatalf("SEED: %v", err)
	}
	w := &worker{path: os.Args[2], blocks: size / blockSize, seed: seed}
	go w.serve()
	run := map[string]func() error{
		"fill": w.fill, "check": w.check, "churn": w.churn, "ledger": w.ledger, "audit": w.audit, "hold": w.hold,
	}[os.Args[1]]
	if run == nil {
		log.Fatalf("unknown work %q", os.Args[1])
	}
	if err := run(); err != nil {
		w.update(func(s *Status) { s.Error = err.Error() })
		_ = os.WriteFile("/dev/termination-log", []byte(err.Error()), 0o600)
		fmt.Println("FAILED:", err)
		if os.Args[1] != "churn" && os.Args[1] != "ledger" {
			os.Exit(1)
		}
	}
	select {} // the tests read the status and end the pod
}
