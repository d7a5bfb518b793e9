package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	scrapeTimeout = 10 * time.Second
	scrapesAtOnce = 4
	listenAgain   = time.Second
)

// Handler answers /metrics, and /healthz with 200 for as long as the process
// does. Neither waits for anything outside of the process.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // the client may have gone
	})
	return mux
}

// Serve answers on address until ctx ends. Where it cannot listen, for a worker
// that is dying may still hold the address, it says so once and tries again:
// volumes are served whether or not anybody can count them.
func (m *Metrics) Serve(ctx context.Context, address string, note func(error)) {
	for told := false; ; {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", address)
		if err == nil {
			err = m.serve(ctx, l)
			told = false
		}
		if ctx.Err() != nil {
			return
		}
		if !told {
			note(fmt.Errorf("serve metrics on %s: %w; it is tried again", address, err))
			told = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(listenAgain):
		}
	}
}

func (m *Metrics) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler: m.Handler(), ReadHeaderTimeout: scrapeTimeout, ReadTimeout: scrapeTimeout,
		WriteTimeout: 2 * scrapeTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
