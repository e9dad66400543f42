// Contender 7: Go's net/http and redigo. One script takes the unit and queues the grant (level C).
//
// Tuned: as many pooled connections to Redis as callers in the bench (32 to 256 were tried; a call holds
// one, and with "appendfsync always" those that arrive together share a flush); EVALSHA; GOMAXPROCS and
// GOGC as they are (1 and 400 made no difference). Built from Debian's packages, see rows.py.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

type grab struct {
	PersonToken  string `json:"person_token"`
	OutRequestNo string `json:"out_request_no"`
	Channel      string `json:"channel"`
	Region       string `json:"region"`
}

type pending struct {
	Status       string `json:"status"`
	DropID       string `json:"drop_id"`
	OutRequestNo string `json:"out_request_no"`
}

type problem struct {
	Type      string `json:"type"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Retryable bool   `json:"retryable"`
}

const connections = 256

var refusals = map[int]string{-1: "sold_out", -2: "person_limit"}

func answer(w http.ResponseWriter, status int, mediaType string, body any) {
	encoded, _ := json.Marshal(body) // structs of strings always encode
	w.Header()["Content-Type"] = []string{mediaType}
	w.WriteHeader(status)
	w.Write(encoded)
}

func main() {
	source, err := os.ReadFile(os.Getenv("SCRIPT"))
	if err != nil {
		log.Fatal(err)
	}
	script := redis.NewScript(3, string(source))
	pool := &redis.Pool{MaxIdle: connections, MaxActive: connections, Wait: true,
		Dial: func() (redis.Conn, error) { return redis.DialURL(os.Getenv("REDIS_URL")) }}

	http.HandleFunc("/v1/drops/", func(w http.ResponseWriter, r *http.Request) {
		drop := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v1/drops/"), "/grabs")
		if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/grabs") {
			http.NotFound(w, r)
			return
		}
		var g grab
		if json.NewDecoder(r.Body).Decode(&g) != nil || g.PersonToken == "" || g.OutRequestNo == "" {
			answer(w, 422, "application/problem+json", problem{"/problems/invalid_request", 422, "invalid_request", false})
			return
		}
		conn := pool.Get()
		left, err := redis.Int(script.Do(conn, "stock:"+drop, "persons:"+drop, "grants:"+drop,
			g.PersonToken, g.OutRequestNo, g.Channel, g.Region))
		conn.Close()
		if err != nil {
			answer(w, 503, "application/problem+json", problem{"/problems/gate_unavailable", 503, "gate_unavailable", true})
		} else if code, refused := refusals[left]; refused {
			answer(w, 409, "application/problem+json", problem{"/problems/" + code, 409, code, false})
		} else {
			answer(w, 202, "application/json", pending{"pending", drop, g.OutRequestNo})
		}
	})
	server := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServe())
}
