package restore

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Handler answers over HTTP how the watch stands. It reads memory only, so it answers also when the source or a disk
// hangs.
//
//	GET /healthz          200 when the report is healthy, 503 otherwise
//	GET /role             200, the role
//	GET /role?is=ROLE     200 when that is the role, 503 otherwise: for those that look at the code only
//
// As text, or as JSON to those that accept it or ask with ?format=json. There is nothing else.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.serveHealth)
	mux.HandleFunc("GET /role", h.serveRole)
	return mux
}

func (h *Health) serveHealth(w http.ResponseWriter, q *http.Request) {
	r := h.Report()
	code := http.StatusOK
	if !r.Healthy {
		code = http.StatusServiceUnavailable
	}
	answer(w, q, code, r, r.String())
}

func (h *Health) serveRole(w http.ResponseWriter, q *http.Request) {
	role := h.Report().Role
	code := http.StatusOK
	if q.URL.Query().Has("is") {
		switch want := Role(q.URL.Query().Get("is")); want {
		case role:
		case Standby, Promoted:
			code = http.StatusServiceUnavailable
		default:
			http.Error(w, fmt.Sprintf("unknown role %q: %s or %s", want, Standby, Promoted), http.StatusBadRequest)
			return
		}
	}
	answer(w, q, code, struct {
		Role Role `json:"role"`
	}{role}, string(role))
}

func answer(w http.ResponseWriter, q *http.Request, code int, doc any, text string) {
	body, kind := []byte(text+"\n"), "text/plain; charset=utf-8"
	if q.URL.Query().Get("format") == "json" || strings.Contains(q.Header.Get("Accept"), "application/json") {
		b, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body, kind = append(b, '\n'), "application/json"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // whoever asked may be gone
}

// String tells the report on a few lines, the verdict first.
func (r HealthReport) String() string {
	var b strings.Builder
	if r.Healthy {
		fmt.Fprintf(&b, "ok: %s", r.Reason)
	} else {
		fmt.Fprintf(&b, "not healthy: %s", r.Reason)
	}
	lag := "never current since watch began"
	if r.Lag != nil {
		lag = "lag " + seconds(*r.Lag)
	}
	fmt.Fprintf(&b, ", %s (at most %s), position %d, transaction %s", lag, seconds(r.MaxLag), r.Position, r.LastTID)
	if r.Message != "" {
		fmt.Fprintf(&b, "\n%s", r.Message)
	}
	if r.Next != "" {
		fmt.Fprintf(&b, "\nnext: %s", r.Next)
	}
	return b.String()
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
