// Records what a real kube-apiserver answers to the cases of control/api/tests/recordings, where our own server is
// then held to it: `go run . ../../../control/api/tests/recordings`. Needs Debian's etcd-server. Everything
// listens on 127.0.0.1.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"time"

	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"sigs.k8s.io/yaml"
)

type step struct {
	// "POST /api/v1/namespaces?fieldManager=a"
	Do string `json:"do"`
	// json (the default), apply, strategic, merge, json-patch, or a whole media type
	Type string `json:"type"`
	Body any    `json:"body"`
	// Why our server says it in other words: our test reads it.
	Differs string `json:"differs"`
	Ours    int    `json:"ours"`
	// Where in the answer it does: JSON pointers.
	At []string `json:"at"`
	// A body as it is, for what is not JSON or says a key twice.
	Text *string `json:"text"`
}

type answer struct {
	Status   int      `json:"status"`
	Warnings []string `json:"warnings,omitempty"`
	Body     any      `json:"body"`
}

var types = map[string]string{
	"":           "application/json",
	"apply":      "application/apply-patch+yaml",
	"strategic":  "application/strategic-merge-patch+json",
	"merge":      "application/merge-patch+json",
	"json-patch": "application/json-patch+json",
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // a certificate made for this run, on 127.0.0.1

const token = "recorder"

func must[T any](value T, err error) T {
	if err != nil {
		panic(err) // and not log.Fatal: what was deferred runs
	}
	return value
}

func check(err error) { must(0, err) }

func freePort() string {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

func send(server, do, contentType, body string) (*http.Response, []byte) {
	method, path, _ := strings.Cut(do, " ")
	request := must(http.NewRequest(method, server+path, strings.NewReader(body)))
	request.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response := must(client.Do(request))
	defer response.Body.Close()
	return response, must(io.ReadAll(response.Body))
}

func play(server, file string) []answer {
	var written struct {
		About string `json:"about"`
		Steps []step `json:"steps"`
	}
	check(yaml.UnmarshalStrict(must(os.ReadFile(file)), &written))
	var answers []answer
	for _, step := range written.Steps {
		contentType, known := types[step.Type]
		if !known {
			contentType = step.Type
		}
		body := ""
		if step.Text != nil {
			body = *step.Text
		} else if step.Body != nil {
			body = string(must(json.Marshal(step.Body)))
		}
		response, bytes := send(server, step.Do, contentType, body)
		found := answer{Status: response.StatusCode, Warnings: response.Header.Values("Warning")}
		if json.Unmarshal(bytes, &found.Body) != nil {
			found.Body = string(bytes)
		}
		normal(found.Body)
		answers = append(answers, found)
	}
	return answers
}

// Without what differs from run to run.
func normal(value any) {
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			normal(item)
		}
	case map[string]any:
		for _, name := range []string{"uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "time"} {
			delete(value, name)
		}
		if entries, is := value["managedFields"].([]any); is {
			// Their order is by time, in whole seconds.
			sort.Slice(entries, func(i, j int) bool { return key(entries[i]) < key(entries[j]) })
		}
		for _, item := range value {
			normal(item)
		}
	}
}

func key(entry any) string {
	of := entry.(map[string]any)
	return fmt.Sprint(of["manager"], " ", of["operation"], " ", of["subresource"], " ", of["apiVersion"])
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: apiserver FOLDER (of *.yaml cases; each gets its *.json answers)")
		os.Exit(2)
	}
	files := must(filepath.Glob(filepath.Join(os.Args[1], "*.yaml")))
	folder := must(os.MkdirTemp("", "recording"))
	defer os.RemoveAll(folder)

	etcdPort, peerPort, port := freePort(), freePort(), freePort()
	etcdURL, peerURL := "http://127.0.0.1:"+etcdPort, "http://127.0.0.1:"+peerPort
	etcd := exec.Command("etcd", "--data-dir", filepath.Join(folder, "etcd"), "--listen-client-urls", etcdURL,
		"--advertise-client-urls", etcdURL, "--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL,
		"--initial-cluster", "default="+peerURL, "--log-level", "error")
	// It ends with this thread, however this program ends.
	runtime.LockOSThread()
	etcd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(etcd.Start())
	defer func() { etcd.Process.Kill(); etcd.Wait() }() // before its folder goes

	signing := must(rsa.GenerateKey(rand.Reader, 2048))
	keyFile, tokenFile := filepath.Join(folder, "sa.key"), filepath.Join(folder, "tokens")
	pemBytes := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(signing)})
	for file, bytes := range map[string][]byte{keyFile: pemBytes, tokenFile: []byte(token + ",recorder,1,system:masters\n")} {
		check(os.WriteFile(file, bytes, 0o600))
	}
	command := app.NewAPIServerCommand()
	command.SetArgs([]string{"--etcd-servers=" + etcdURL, "--bind-address=127.0.0.1", "--secure-port=" + port,
		"--cert-dir=" + filepath.Join(folder, "certs"), "--token-auth-file=" + tokenFile, "--authorization-mode=RBAC",
		"--service-account-key-file=" + keyFile, "--service-account-signing-key-file=" + keyFile,
		"--service-account-issuer=https://127.0.0.1", "--service-cluster-ip-range=10.96.0.0/16",
		"--endpoint-reconciler-type=none",
		// No controller makes the accounts that it would ask for.
		"--disable-admission-plugins=ServiceAccount", "-v=0"})
	ended := make(chan error, 1)
	go func() { ended <- command.Execute() }() // a panic there would leave all behind

	server := "https://127.0.0.1:" + port
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		select {
		case err := <-ended:
			panic(fmt.Sprintf("kube-apiserver ended: %v", err))
		default:
		}
		if response, err := client.Get(server + "/readyz"); err == nil {
			response.Body.Close()
			if response.StatusCode == 200 {
				break
			}
		}
		if time.Since(begin) > 2*time.Minute {
			panic("kube-apiserver is not ready after two minutes")
		}
	}
	for _, file := range files {
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", " ")
		check(encoder.Encode(play(server, file)))
		to := strings.TrimSuffix(file, ".yaml") + ".json"
		check(os.WriteFile(to, text.Bytes(), 0o644))
		fmt.Println("recorded", to)
	}
}
