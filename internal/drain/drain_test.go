package drain

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/kubeapi"
)

// server stands in for an API server: it answers as one does, but has no
// storage and no rules of access. The end-to-end tests drain a real node.
type server struct {
	t      *testing.T
	node   string   // the node object; "" is none
	pages  [][]item // of the list of attachments
	events []string // what a watch sends before it goes on for ever
	deny   string   // path prefix that is forbidden
	lists  int
	after  func(s *server) // called with the end of each watch
}

type item struct{ name, driver, node string }

func (i item) json() string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"uid":"x"},"spec":{"attacher":%q,"nodeName":%q,"source":{}},"status":{"attached":true}}`, i.name, i.driver, i.node)
}

const us = "csi.vhdx.dev"

func event(kind string, i item) string { return fmt.Sprintf(`{"type":%q,"object":%s}`, kind, i.json()) }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	fail := func(code int) {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","message":"no: %d","code":%d}`, code, code)
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer secret":
		fail(http.StatusUnauthorized)
	case s.deny != "" && strings.HasPrefix(r.URL.Path, s.deny):
		fail(http.StatusForbidden)
	case r.URL.Path == "/api/v1/nodes/n1" && s.node != "":
		fmt.Fprint(w, s.node)
	case r.URL.Path == attachments && query.Get("watch") == "1":
		if query.Get("resourceVersion") != "7" {
			s.t.Errorf("the watch goes on from version %q, want 7", query.Get("resourceVersion"))
		}
		for _, e := range s.events {
			fmt.Fprintln(w, e)
		}
		w.(http.Flusher).Flush()
		if s.after != nil {
			s.after(s)
			return
		}
		<-r.Context().Done()
	case r.URL.Path == attachments:
		s.list(w, query.Get("continue"))
	default:
		fail(http.StatusNotFound)
	}
}

func (s *server) list(w http.ResponseWriter, from string) {
	s.lists++
	page := 0
	if from != "" {
		_, _ = fmt.Sscanf(from, "p%d", &page)
	}
	next := ""
	if page+1 < len(s.pages) {
		next = fmt.Sprintf("p%d", page+1)
	}
	var items []json.RawMessage
	if page < len(s.pages) {
		for _, i := range s.pages[page] {
			items = append(items, json.RawMessage(i.json()))
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]string{"resourceVersion": "7", "continue": next}, "items": items})
}

// waiter talks to s over real TLS, with an account as a pod has it.
func waiter(t *testing.T, s *server) (*Waiter, *strings.Builder) {
	t.Helper()
	s.t = t
	https := httptest.NewTLSServer(s)
	t.Cleanup(https.Close)
	account := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: https.Certificate().Raw})
	for name, content := range map[string]string{"ca.crt": string(ca), "token": "secret\n"} {
		if err := os.WriteFile(filepath.Join(account, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	api, err := kubeapi.New(https.URL, account)
	if err != nil {
		t.Fatal(err)
	}
	notes := &strings.Builder{}
	return &Waiter{API: api, Node: "n1", Driver: us, Note: func(text string) { fmt.Fprintln(notes, text) }}, notes
}

const cordoned = `{"spec":{"unschedulable":true}}`

func TestWait(t *testing.T) {
	a, b := item{"a", us, "n1"}, item{"b", us, "n1"}
	foreign, elsewhere := item{"c", "other.csi", "n1"}, item{"d", us, "n2"}
	for _, tt := range []struct {
		name   string
		server server
		lists  int
		note   string
	}{
		{"a rollout waits for nothing", server{node: `{"spec":{"taints":[{"key":"node.kubernetes.io/not-ready"}]}}`, pages: [][]item{{a}}}, 0, "not being emptied"},
		{"cordoned, nothing attached", server{node: cordoned}, 1, "it is cordoned"},
		{"only others' volumes and nodes", server{node: cordoned, pages: [][]item{{foreign, elsewhere}}}, 1, "no volume is attached"},
		{"an autoscaler's taint", server{node: `{"spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler"}]}}`}, 1, "ToBeDeletedByClusterAutoscaler"},
		{"the node is gone", server{pages: [][]item{{a}}, events: []string{event("DELETED", a)}}, 1, "it has been removed"},
		{"until the last one is detached", server{node: cordoned, pages: [][]item{{a, foreign}, {elsewhere, b}}, events: []string{
			event("MODIFIED", a), event("DELETED", a), event("DELETED", foreign), `{"type":"BOOKMARK","object":{}}`,
			event("ADDED", item{"e", us, "n1"}), event("DELETED", b), event("DELETED", item{"e", us, "n1"}),
		}}, 2, "waits for 2 volume attachments: a, b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, notes := waiter(t, &tt.server)
			if err := w.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tt.server.lists != tt.lists || !strings.Contains(notes.String(), tt.note) {
				t.Errorf("%d lists, want %d; it said:\n%s", tt.server.lists, tt.lists, notes)
			}
		})
	}
}

// TestListsAgain: a watch that ends, for whatever reason, is no detachment.
func TestListsAgain(t *testing.T) {
	a := item{"a", us, "n1"}
	for _, last := range []string{"", `{"type":"ERROR","object":{"code":410}}`, `{"type":"DELETED","object":{"metadata":`, `{"type":"DELETED","object":7}`, "no JSON"} {
		s := &server{node: cordoned, pages: [][]item{{a}}, events: []string{last}}
		s.after = func(s *server) { s.pages = nil } // detached while nobody watched
		w, _ := waiter(t, s)
		if err := w.Wait(t.Context()); err != nil || s.lists != 2 {
			t.Errorf("after %q: %d lists, %v", last, s.lists, err)
		}
	}
}

func TestTimeIsUp(t *testing.T) {
	s := &server{node: cordoned, pages: [][]item{{{"a", us, "n1"}}}}
	w, notes := waiter(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	w.Note = func(text string) {
		if strings.Contains(text, "waits for") {
			cancel()
		}
		fmt.Fprintln(notes, text)
	}
	if err := w.Wait(ctx); !errors.Is(err, ErrStillAttached) || !strings.Contains(err.Error(), ": a;") {
		t.Fatalf("%v, want %v and the name", err, ErrStillAttached)
	}
}

// TestRefused: without the right to look there is no use in asking again.
func TestRefused(t *testing.T) {
	for _, path := range []string{"/api/v1/nodes", attachments} {
		w, _ := waiter(t, &server{node: cordoned, deny: path})
		if err := w.Wait(t.Context()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "403 no: 403") {
			t.Errorf("%s: %v, want %v", path, err, ErrRefused)
		}
	}
}
