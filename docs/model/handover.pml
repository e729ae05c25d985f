/* handover.pml -- replicad: in a live migration the role moves with the target's first write (decision 0011).
 * The register {epoch, primary, in-sync set, handover} is atomic here (vote.pml and failover.pml check it).
 *
 * What is modelled
 *  - Two hosts and one VM.  Host 0 runs it first; at the switch the VM stops there with nothing in flight and
 *    starts on host 1 with the same memory.  From then on the hypervisor may kill it on host 1 and let it go on
 *    on host 0, at any time; also without killing it: both run then (`two`), and each may do what it likes.
 *  - One block.  A write has a number; a host has the block's content applied (img) and logged (lg).  A guest
 *    has one request at a time, so what it must read is known exactly: its own last answered write.
 *  - A handover is on record with an id.  The other host's plugin is then a *standby*: it answers a read when
 *    applied here is what the primary, asked after the read began, had answered last; its first write asks for
 *    the role.  The move is the switchover: hold, drain, compare, seal, vote in the epoch that is sealed.  The
 *    same once more is the way back, and it ends the handover.  Requests and offers may be late or repeated.
 *  - While a handover is on record the volume is sync; before and after it is async (-DSYNC: sync always).
 *  - Faults: a host is lost; the primary's plugin is restarted; the stream ends and the primary takes the other
 *    out of the set; the handover is ended at any time; failover (no force) at any time.
 *
 * Checked
 *  - a write is answered only if the primary's history has it, and no failover loses an answered one
 *  - a read returns the last write that was answered anywhere before it began, or a later one
 *  - while not both VMs run: a guest reads its own last write, never what a VM that was killed has left
 *  - the role moves at most once each way for one id, never without its handover on record, and it never
 *    returns after a write of the target's guest has got in
 *
 * Mutations that must fail: M_NOASK (a standby reads what is applied), M_OWNLOG (it waits for what is logged
 *  here and asks nobody), M_CACHEASK (an earlier question's answer serves a later read), M_NOID (neither request
 *  nor vote is bound to the handover on record), M_NOREFUSE (the role goes back at any time), M_ANSWEREDONLY
 *  (it is refused only after a write was *answered*), M_KEEPHELD (the held write of a client that is gone is
 *  carried out), M_CLAIMKEEPS (the target's next term keeps the handover), M_NOSYNC (the mode stays), M_SYNCLATE
 *  (the handover is on record before the volume is sync), M_RESUMEOLD (the sealed source goes on in its epoch),
 *  M_UNAPPLIED (the target serves what it has logged before it is applied), M_SOURCEREADS (the source reads its
 *  image after the move without asking), M_ASKENDED (a question is answered also after its handover has ended).
 *  -DKEEPONLEAVE verifies as well.  -DREACH* show that the runs are not vacuous.
 */
#ifndef NW
#define NW 3            /* writes */
#endif
#ifndef NID
#define NID 1           /* handovers */
#endif
#ifndef NE
#define NE 4            /* highest epoch */
#endif
#ifndef NK
#define NK 1            /* hosts lost */
#endif
#ifndef NR
#define NR 1            /* plugin restarts */
#endif
#ifdef SYNC
#define BASE true
#else
#define BASE false
#endif
#define BIT(x) (1 << (x))
#define O(h) (1 - (h))
#define NONE 0          /* requests */
#define WHELD 1
#define WIN 2           /* a write that got in: image and stream have it */
#define READ 3
#define ASKED 4         /* a read that knows what it waits for */
#define OFF 0           /* the VM */
#define RUNS 1
#define PAUSED 2

byte ep = 1, prim, isr = 3, hid, hto; /* the register */
byte nid, nw, kills, restarts;
bool up[2] = true;
byte sep[2];                          /* epoch in which the plugin is the primary; 0: it is not */
byte st[2];                           /* standby of that handover */
bool held[2], seal[2], msync[2], prep[2];
bool let[2];                          /* the plugin let a write of its guest in since it became primary */
byte pans[2];                         /* last answered, as this primary knows */
byte img[2], lg[2], ses[2], rep[2];   /* rep: what the other reported as logged to this primary */
byte ask[2];                          /* ids for which this host's plugin has ever asked for the role */
byte offer, offid;                    /* sealed in this epoch, for this handover */
byte vm[2], know[2], rq[2], rn[2], floor[2];
#ifdef M_CACHEASK
byte cached[2];
#endif
/* ghosts */
byte ansb, ans, lost;                 /* answered, as bits and the highest; admitted and in no history any more */
bool two, fo, answered;     /* answered: a write of the target's guest since the move */
byte fwd[3], back[3];
byte i_;

#define ISPRIM(h) (sep[h] != 0 && prim == h && sep[h] == ep)
#define MOVED (hid != 0 && prim == hto)
#ifdef M_NOID
#define FOR(id) true
#else
#define FOR(id) (hid != 0 && hid == (id))
#endif
#if defined(M_NOREFUSE)
#define MAYGO(p) true
#elif defined(M_ANSWEREDONLY)
#define MAYGO(p) (p != hto || !let[p] || rq[p] == WIN)
#else
#define MAYGO(p) (p != hto || !let[p])
#endif
#ifdef M_UNAPPLIED
#define CONFIRMED(p) (ses[O(p)] == sep[p] && lg[O(p)] == img[p])
#else
#define CONFIRMED(p) (ses[O(p)] == sep[p] && img[O(p)] == img[p])
#endif
inline read_it(h) {
  assert(img[h] >= floor[h] || (fo && sep[h] != 0 && sep[h] < ep));
  assert(two || img[h] == know[h]);
  rq[h] = NONE; floor[h] = 0; rn[h] = 0
}
inline term(h) {               /* h's plugin is the primary of epoch ep now */
  sep[h] = ep; st[h] = 0; held[h] = false; seal[h] = false; let[h] = false; prep[h] = false;
#ifndef M_UNAPPLIED
  img[h] = lg[h];
#endif
  pans[h] = lg[h]; ses[h] = 0; ses[O(h)] = 0; rep[h] = 0; msync[h] = (BASE || hid != 0)
}
inline no_plugin(h) {
  sep[h] = 0; held[h] = false; seal[h] = false; let[h] = false; prep[h] = false; pans[h] = 0; rep[h] = 0;
  msync[h] = BASE
}

#define HOST(h) \
  /* ---- the guest ---- */ \
  :: d_step { vm[h] == RUNS && up[h] && rq[h] == NONE && nw < NW -> rq[h] = WHELD } \
  :: d_step { vm[h] == RUNS && up[h] && rq[h] == NONE -> rq[h] = READ; floor[h] = ans } \
  /* ---- a primary ---- */ \
  :: d_step { rq[h] == WHELD && sep[h] != 0 && !held[h] && !seal[h] && nw < NW -> \
       nw++; img[h] = nw; lg[h] = nw; rn[h] = nw; rq[h] = WIN; let[h] = true; \
       if :: sep[h] < ep -> lost = lost | BIT(nw) :: else fi } \
  :: d_step { rq[h] == WIN && sep[h] != 0 && !seal[h] && \
              (!msync[h] || (sep[h] == ep && !(isr & BIT(O(h)))) || rep[h] >= rn[h]) -> \
       assert(!(lost & BIT(rn[h]))); \
       ansb = ansb | BIT(rn[h]); pans[h] = rn[h]; \
       if :: rn[h] > ans -> ans = rn[h] :: else fi; \
       if :: MOVED && h == hto && sep[h] == ep -> answered = true :: else fi; \
       if :: vm[h] == RUNS -> know[h] = rn[h] :: else fi; rn[h] = 0; rq[h] = NONE } \
  :: d_step { rq[h] == READ && sep[h] != 0 && !seal[h] -> read_it(h) } \
  SEALED_READ(h) \
  /* ---- the stream from the other ---- */ \
  :: d_step { up[h] && sep[h] == 0 && prim != h && ISPRIM(O(h)) && ses[h] != ep && !fo -> \
       ses[h] = ep; rep[O(h)] = lg[h] } \
  :: d_step { ses[h] != 0 && up[O(h)] && ses[h] == sep[O(h)] && lg[h] != img[O(h)] -> lg[h] = img[O(h)] } \
  :: d_step { ses[h] != 0 && ses[h] == sep[O(h)] && rep[O(h)] != lg[h] -> rep[O(h)] = lg[h] } \
  :: d_step { up[h] && img[h] != lg[h] -> img[h] = lg[h] } \
  :: d_step { ses[h] != 0 -> if :: ses[h] == sep[O(h)] -> rep[O(h)] = 0 :: else fi; ses[h] = 0 } \
  :: d_step { ISPRIM(h) && !seal[h] && (isr & BIT(O(h))) -> \
       isr = BIT(h); LEAVE \
       if :: ses[O(h)] == ep -> ses[O(h)] = 0 :: else fi; rep[h] = 0 } \
  :: d_step { ISPRIM(h) && !(isr & BIT(O(h))) && ses[O(h)] == ep && rep[h] == img[h] && img[h] == pans[h] -> \
       isr = 3 } \
  /* ---- prepared: sync first, what was answered before is in the other's log, then by record ---- */ \
  PREPARE(h) \
  :: d_step { up[h] && hid != 0 && hto == h && prim != h && st[h] == 0 && sep[h] == 0 -> st[h] = hid } \
  :: d_step { st[h] != 0 && st[h] != hid && prim != h -> st[h] = 0; \
       if :: rq[h] != WIN -> rq[h] = NONE; rn[h] = 0; floor[h] = 0; vm[h] = OFF :: else fi } \
  :: d_step { ISPRIM(h) && hid != 0 -> hid = 0 }                                    /* --end */ \
  :: d_step { ISPRIM(h) && hid == 0 && !prep[h] && msync[h] != BASE -> msync[h] = BASE } \
  /* ---- a standby ---- */ \
  STANDBY_READ(h) \
  :: d_step { rq[h] == ASKED && sep[h] == 0 && st[h] != 0 && img[h] >= rn[h] -> read_it(h) } \
  :: d_step { rq[h] == ASKED && sep[h] != 0 -> rq[h] = READ; rn[h] = 0 } \
  :: d_step { rq[h] == WHELD && sep[h] == 0 && st[h] != 0 && !(ask[h] & BIT(st[h])) -> ask[h] = ask[h] | BIT(st[h]) } \
  /* ---- the move, asked for by the other ---- */ \
  :: d_step { ISPRIM(h) && !held[h] && !seal[h] && MAYGO(h) && \
              (((ask[O(h)] & 2) && FOR(1)) || ((ask[O(h)] & 4) && FOR(2))) -> held[h] = true } \
  :: d_step { held[h] && !seal[h] -> held[h] = false } \
  :: d_step { held[h] && !seal[h] && rq[h] != WIN && CONFIRMED(h) -> seal[h] = true; offer = sep[h]; offid = hid } \
  :: d_step { up[O(h)] && offer != 0 && offer == ep && prim == h && (isr & BIT(O(h))) && FOR(offid) && ep < NE && \
              st[O(h)] != 0 -> \
       assert(hid != 0); offer = 0; offid = 0; ep++; prim = O(h); \
       if :: O(h) == hto -> fwd[hid]++; assert(fwd[hid] == 1); answered = false \
          :: else -> back[hid]++; assert(back[hid] == 1); assert(!answered); hid = 0 fi; REACHED } \
  :: d_step { up[h] && prim == h && sep[h] == 0 && st[h] != 0 -> term(h) } \
  :: d_step { seal[h] && prim != h -> i_ = hid; no_plugin(h); st[h] = i_; i_ = 0 }   /* the standby of the way back */ \
  SETTLE(h) \
  /* ---- other terms ---- */ \
  :: d_step { sep[h] != 0 && sep[h] < ep && !seal[h] -> no_plugin(h) } \
  :: d_step { ISPRIM(h) && !seal[h] && rq[h] != WIN && restarts < NR && ep < NE -> \
       restarts++; ep++; CLAIM(h) term(h) } \
  :: d_step { up[h] && prim != h && sep[h] == 0 && (isr & BIT(h)) && (BASE || hid != 0) && ep < NE -> \
       i_ = 1; \
       do :: i_ <= nw -> if :: i_ > lg[h] -> lost = lost | BIT(i_) :: else fi; i_++ :: else -> break od; i_ = 0; \
       assert(!(lost & ansb)); \
       if :: h == 0 -> two = true :: else fi; \
       fo = true; ep++; prim = h; isr = BIT(h); hid = 0; term(h) } \
  :: d_step { up[h] && kills < NK -> kills++; up[h] = false; no_plugin(h); st[h] = 0; ses[h] = 0; \
       vm[h] = OFF; rq[h] = NONE; rn[h] = 0; floor[h] = 0 }

#ifdef KEEPONLEAVE      /* the handover stays when the target leaves the set: safe too */
#define LEAVE
#else
#define LEAVE hid = 0;
#endif
#if defined(M_NOSYNC)
#define PREPARE(h) \
  :: d_step { ISPRIM(h) && !seal[h] && hid == 0 && nid < NID && isr == 3 && h == 0 -> nid++; hid = nid; hto = O(h) }
#elif defined(M_SYNCLATE)
#define PREPARE(h) \
  :: d_step { ISPRIM(h) && !seal[h] && hid == 0 && nid < NID && isr == 3 && h == 0 -> nid++; hid = nid; hto = O(h) } \
  :: d_step { ISPRIM(h) && hid != 0 && !msync[h] -> msync[h] = true }
#else
#define PREPARE(h) \
  :: d_step { ISPRIM(h) && !seal[h] && hid == 0 && nid < NID && isr == 3 && !prep[h] && h == 0 -> \
       prep[h] = true; msync[h] = true } \
  :: d_step { prep[h] && ISPRIM(h) && isr == 3 && ses[O(h)] == ep && rep[h] >= pans[h] -> \
       prep[h] = false; nid++; hid = nid; hto = O(h) } \
  :: d_step { prep[h] -> prep[h] = false }
#endif
#if defined(M_NOASK)
#define STANDBY_READ(h) :: d_step { rq[h] == READ && sep[h] == 0 && st[h] != 0 -> rq[h] = ASKED; rn[h] = 0 }
#elif defined(M_OWNLOG)
#define STANDBY_READ(h) :: d_step { rq[h] == READ && sep[h] == 0 && st[h] != 0 -> rq[h] = ASKED; rn[h] = lg[h] }
#else
#ifdef M_ASKENDED
#define ASKFOR(h) true
#else
#define ASKFOR(h) (hid == st[h])
#endif
#define CANASK(h) (rq[h] == READ && sep[h] == 0 && st[h] != 0 && ISPRIM(O(h)) && !seal[O(h)] && ASKFOR(h) && \
                   !(MOVED && let[O(h)]))
#ifdef M_CACHEASK
#define STANDBY_READ(h) \
  :: d_step { CANASK(h) -> rq[h] = ASKED; rn[h] = pans[O(h)]; cached[h] = rn[h] } \
  :: d_step { rq[h] == READ && sep[h] == 0 && st[h] != 0 && cached[h] != 0 -> rq[h] = ASKED; rn[h] = cached[h] }
#else
#define STANDBY_READ(h) :: d_step { CANASK(h) -> rq[h] = ASKED; rn[h] = pans[O(h)] }
#endif
#endif
#ifdef M_SOURCEREADS
#define SEALED_READ(h) :: d_step { rq[h] == READ && (seal[h] || (h != hto && st[h] != 0)) -> read_it(h) }
#else
#define SEALED_READ(h)
#endif
#ifdef M_RESUMEOLD
#define SETTLE(h) :: d_step { seal[h] && prim == h && ep == sep[h] -> seal[h] = false; held[h] = false }
#else                   /* a new epoch, in which the offer cannot be taken any more */
#define SETTLE(h) \
  :: d_step { seal[h] && prim == h && ep == sep[h] && ep < NE -> \
       ep++; sep[h] = ep; seal[h] = false; held[h] = false; rep[h] = 0; ses[O(h)] = 0 }
#endif
#ifdef M_CLAIMKEEPS
#define CLAIM(h)
#else
#define CLAIM(h) if :: MOVED -> hid = 0 :: else fi;
#endif
#if defined(REACHBACK)    /* the way back, after both the target's and the source's guest have asked */
#define REACHED assert(!(prim == 0 && ansb != 0))
#elif defined(REACHTWICE) /* a second handover moves the role after the first one's way back */
#define REACHED assert(!(back[1] == 1 && fwd[2] == 1))
#else
#define REACHED
#endif

active proctype World() {
  do
  HOST(0)
  HOST(1)
  /* ---- the hypervisor ---- */
  :: d_step { vm[0] == RUNS && rq[0] == NONE && vm[1] == OFF && rq[1] == NONE && st[1] != 0 && up[1] ->
       vm[0] = PAUSED; vm[1] = RUNS; know[1] = know[0] }
  :: d_step { vm[1] == RUNS -> vm[1] = OFF;
#ifdef M_KEEPHELD
       if :: rq[1] == READ || rq[1] == ASKED -> rq[1] = NONE; rn[1] = 0; floor[1] = 0 :: else fi
#else
       if :: rq[1] != WIN -> rq[1] = NONE; rn[1] = 0; floor[1] = 0 :: else fi
#endif
     }
  :: d_step { vm[0] == PAUSED && up[0] -> vm[0] = RUNS; two = two || vm[1] == RUNS }
#ifdef REACHEND         /* the VM runs on host 1 alone, its write answered there, a read after it */
  :: d_step { vm[1] == RUNS && sep[1] == ep && !fo && !two && know[1] == NW && rq[1] == READ && img[1] == NW ->
       assert(false) }
#endif
  od
}
init { d_step { sep[0] = 1; ses[1] = 1; msync[0] = BASE; msync[1] = BASE; vm[0] = RUNS } }
